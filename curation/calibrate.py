"""Finds the CLIP threshold that keeps the wanted share of a profile's pairs, from a sample of its units.

The one decision: the sample is scored by the job of a run, into a folder that looks like a run's, with the threshold in
question open; so CLIP is paid for once however often the target changes, and what the run itself has scored is read
from its ledger. The sample grows until the interval of the retention is as narrow as was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from curation import attempts, lease, manifests, stats
from curation.cluster import JobError
from curation.drift import FOLDER, RESULT, USUAL
from curation.interval import CONFIDENCE, Interval, Ratio
from curation.opened import Opened, open_run
from curation.plan import Plan, RunError, asked, make_plan, own, read_run
from curation.profile import Fingerprints, Profile
from curation.progress import say
from curation.run import write_run
from curation.sampling import Pool, Sample, drawn, first_size, next_size
from curation.stats import Totals
from curation.threshold import OutOfReach, Scored, Solution, solve
from filters.base import Filter
from filters.clip_score import ClipScore, Minimums
from shards.storage import Storage, StorageError

_VERSION = 1


class Unreachable(RunError):
    """No threshold gives the target: one line that says what stands in the way."""


@dataclass(frozen=True)
class Calibration:
    """What was found. `totals`: the sample decided with the new threshold. `reused`: units that the run had scored."""

    profile: Profile
    label: str
    target: float
    solution: Solution
    interval: Interval
    sample: Sample
    units: int
    of: int
    reused: int
    totals: Totals
    decision: str
    folder: str

    @property
    def before(self) -> dict[str, float]:
        return _rule(self.profile, self.label).minimums

    def to_json(self) -> dict[str, Any]:
        after: Any = self.solution.minimums
        before: Any = self.before
        alone = list(after) == [""]
        return {
            "calibration_version": _VERSION,
            "profile": self.profile.name,
            "filter": self.label,
            "target": self.target,
            "before": before[""] if alone else before,
            "after": after[""] if alone else after,
            "retention": self.interval.estimate,
            "interval": {"low": self.interval.low, "high": self.interval.high, "confidence": CONFIDENCE},
            "sample": {
                "units": self.units,
                "of": self.of,
                "from_the_run": self.reused,
                "share": self.sample.share,
                "seed": self.sample.seed,
                "within_points": self.sample.within,
            },
            "ties": [
                {
                    "language": tie.language or None,
                    "threshold": float(tie.threshold),
                    "samples": tie.samples,
                    "retention_above": tie.kept_above / self.solution.seen,
                }
                for tie in self.solution.ties
            ],
            "funnel": stats.funnel(self.totals, list(self.profile.filters)),
            "decision_fp": self.decision,
            "folder": self.folder,
        }


def filter_of(profile: Profile, label: str | None) -> str:
    """The label of the filter to calibrate. Raises `RunError` where it is none, or not clear."""
    found = [name for name, rule in profile.filters.items() if isinstance(rule, ClipScore)]
    if label is None and len(found) == 1:
        return found[0]
    if label is None and found:
        raise RunError(f"{profile.name}: has {len(found)} clip_score filters: --filter {' or --filter '.join(found)}")
    if not found:
        raise RunError(f"{profile.name}: has no clip_score filter, and so no threshold to calibrate")
    if label not in found:
        raise RunError(
            f"{profile.name}: {label!r} is no clip_score filter of it: --filter {' or --filter '.join(found)}"
        )
    return label


def target_of(profile: Profile, target: float | None) -> float:
    """The target asked for, else the profile's."""
    found = profile.target_retention if target is None else target
    if not found:
        raise RunError(
            f"{profile.name}: no share to aim at: give --target 0.14, or set target_retention in the profile"
        )
    return found


def calibrate(profile: Profile, label: str, target: float, sample: Sample, address: str | None = None) -> Calibration:
    """Scores what it needs of the sample and solves for the threshold; writes the result into the calibration's folder.

    Raises `Unreachable`, `RunError`, `StorageError`, `RuleError`; `JobError` where units of the sample failed.
    """
    opened = wide_open(profile, label)
    base = f"{profile.run_folder}/{FOLDER}"
    plan = make_plan(opened, replace=True, folder=lambda prints: f"{base}/{prints.decision[:16]}")
    for name, rule in opened.cheap.items():
        asked(f"filter {name!r}", rule.setup)
    for note in plan.notes:
        say(f"note: {note}")
    run = _scored_run(profile, plan.prints)
    with ExitStack() as stack:
        held = stack.enter_context(lease.hold(plan.output, say))
        _prepare(plan)
        pool = Pool(plan, profile, label, run, address, held, stack)
        try:
            result = _solve(pool, target, sample)
            plan.output.write(RESULT, json.dumps(result.to_json(), ensure_ascii=False, indent=1).encode(), durable=True)
        except (StorageError, manifests.ManifestError) as error:  # no mistake in the call: work had begun
            raise JobError(str(error)) from error
        return result


def wide_open(profile: Profile, label: str) -> Profile:
    """The profile with the filter's thresholds open, so that every later filter scores what it would have dropped."""
    rule = _rule(profile, label)
    widest: dict[str, Any] = {"min": -1.0, "max": None}
    if rule.column is not None:
        widest["missing"] = "keep"
    return with_filter(profile, label, rule.model_copy(update=widest))


def with_minimums(profile: Profile, label: str, minimums: dict[str, float]) -> Profile:
    """The profile with these thresholds."""
    low: float | Minimums = minimums[""] if "" in minimums else Minimums(**minimums)
    return with_filter(profile, label, _rule(profile, label).model_copy(update={"min": low}))


def with_filter(profile: Profile, label: str, rule: Filter) -> Profile:
    return profile.model_copy(update={"filters": {**profile.filters, label: rule}})


def per_cent(share: float) -> str:
    """A share in per cent, as people read it."""
    return f"{share * 100:.1f} %"


def _rule(profile: Profile, label: str) -> ClipScore:
    rule = profile.filters[label]
    assert isinstance(rule, ClipScore)
    return rule


def _scored_run(profile: Profile, prints: Fingerprints) -> Opened | None:
    """The profile's own run, if there is one with these very scores."""
    output = Storage.open(profile.run_folder)
    if not output.exists("run.json"):
        return None
    if read_run(output).get("score_fp") != prints.score:
        say(f"note: {output.uri} holds other scores than this profile gives: nothing of them is used")
        return None
    return open_run(profile.run_folder)


def _prepare(plan: Plan) -> None:
    """As a run does; what other inputs left there does no harm, since only units of the sample are read."""
    own(plan.output, plan.prints)
    write_run(plan)
    plan.output.sweep_temporary(lease.STALE_S)
    attempts.clear(plan.output)


def _solve(pool: Pool, target: float, sample: Sample) -> Calibration:
    """Draws units until the interval is narrow enough, and solves on them."""
    profile, label = pool.profile, pool.label
    order = drawn(pool.plan.units, sample.seed)
    before = _rule(profile, label).minimums
    taken, size = 0, first_size(len(order), sample)
    while True:
        pool.take(order[taken:size])
        taken = size
        solution, miss = _try(pool.scores, target, before)
        lowest = dict.fromkeys(before, -1.0)
        minimums = solution.minimums if solution else lowest if miss and miss.most else dict.fromkeys(before, 1.0)
        ratio = Ratio.of((unit.kept(minimums), unit.seen) for unit in pool.scores)
        interval = ratio.interval(len(order))
        size = next_size(ratio, interval, len(order), sample)
        if size == taken:
            break
        if miss and interval and not interval.low <= target <= interval.high:
            break  # no larger sample will reach it
        width = f"+-{interval.half * 100:.1f} points" if interval else "not known"
        say(
            f"{profile.name}: after {taken:,} of {len(order):,} units the interval is {width}, --within asks for "
            f"+-{sample.within:g}: takes {size - taken:,} more"
        )
    if not ratio.seen:
        raise Unreachable(f"{profile.name}: the {taken:,} units of the sample hold no pair: nothing can be calibrated")
    if solution is None or interval is None:
        raise Unreachable(_why(pool, target, lowest, miss))
    off = abs(interval.estimate - target)
    if off > USUAL + 1e-9:
        say(
            f"warning: {profile.name}: no threshold comes nearer to {target:.2%} than {off * 100:.1f} points: many "
            "scores are the same, or the sample holds few pairs"
        )
    found = with_minimums(profile, label, solution.minimums)
    return Calibration(
        profile=profile,
        label=label,
        target=target,
        solution=solution,
        interval=interval,
        sample=sample,
        units=taken,
        of=len(order),
        reused=pool.reused,
        totals=pool.decided(found),
        decision=found.fingerprints().decision,
        folder=pool.plan.output.uri,
    )


def _try(units: Sequence[Scored], target: float, before: dict[str, float]) -> tuple[Solution | None, OutOfReach | None]:
    try:
        return solve(units, target, before), None
    except OutOfReach as miss:
        return None, miss


def _why(pool: Pool, target: float, lowest: dict[str, float], miss: OutOfReach | None) -> str:
    """One line: what keeps the target out of reach, and what to do."""
    profile, label = pool.profile, pool.label
    seen = sum(unit.seen for unit in pool.scores)
    others = sum(unit.others for unit in pool.scores)
    aim = f"{profile.name}: a retention of {per_cent(target)} is out of reach"
    if miss is not None and not miss.most:
        return (
            f"{aim}: {per_cent(miss.kept / seen)} of the {seen:,} pairs of the sample are kept whatever {label}.min is "
            f"(no score and `missing: keep`, or one above 1): set {label}.missing to drop, or aim higher"
        )
    if others >= target * seen - 1e-6:
        mute = sum(unit.mute for unit in pool.scores)
        return (
            f"{aim}: the other filters keep {per_cent(others / seen)} of the {seen:,} pairs of the sample, but even "
            f"with {label}.min at -1 only {per_cent((miss.kept if miss else 0) / seen)} stay: {mute:,} of them have no "
            f"score ({_no_score(profile, label)}){_above(profile, label)}"
        )
    totals = pool.decided(with_minimums(profile, label, lowest))
    drops = {name: totals.reasons.get(name, 0) + totals.reasons.get(f"{name}:error", 0) for name in profile.filters}
    drops["unreadable"] = sum(totals.unreadable.values())
    drops |= {name: number for name, number in totals.reasons.items() if ":" not in name and name not in drops}
    drops.pop(label)
    worst = sorted(((number, name) for name, number in drops.items() if number), reverse=True)[:3]
    costs = ", ".join(
        f"{name} drops {per_cent(number / seen)} first"
        + (f", {per_cent(totals.failed_alone.get(name, 0) / seen)} alone" if name in profile.filters else "")
        for number, name in worst
    )
    return (
        f"{aim}: without {label} the filters keep {per_cent(others / seen)} of the {seen:,} pairs of the sample; "
        f"most is lost to: {costs}: loosen what costs too much, or set a lower --target (target_retention)"
    )


def _no_score(profile: Profile, label: str) -> str:
    column = _rule(profile, label).column
    return f"reason {label}:error" if column is None else f"column {column!r} is empty there, and `missing: drop`"


def _above(profile: Profile, label: str) -> str:
    limit = _rule(profile, label).max
    return "" if limit is None else f", others lie above {label}.max {limit}"
