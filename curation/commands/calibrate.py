"""`calibrate`: the CLIP threshold that keeps a wanted share."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curation.commands.common import Commands, command, complain, on_cluster, overridable, show

if TYPE_CHECKING:
    from curation.calibrate import Calibration
    from curation.config import Pipelines
    from curation.profile import Profile


def add(commands: Commands) -> None:
    added = command(
        commands,
        "calibrate",
        "Finds the CLIP threshold that keeps a wanted share of the pairs, from a sample of the units.",
        "calibrate demo --target 0.28 --write",
    )
    added.add_argument(
        "--target", type=_share, metavar="SHARE", help="what to keep, such as 0.14; default: target_retention"
    )
    added.add_argument(
        "--sample", type=_share, default=0.02, metavar="SHARE", help="of the units, at first; default: %(default)s"
    )
    added.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws another sample")
    added.add_argument(
        "--within",
        type=_points,
        default=0.5,
        metavar="POINTS",
        help="the sample grows until the 95 %% interval is so narrow, in percentage points to either side; "
        "default: %(default)s",
    )
    added.add_argument("--write", action="store_true", help="writes the threshold into the configuration's file")
    added.add_argument("--filter", metavar="LABEL", help="which clip_score filter, where there are several")
    added.add_argument("--json", action="store_true", help="the result as JSON")
    overridable(added)
    on_cluster(added)


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.calibrate import calibrate, filter_of, target_of
    from curation.sampling import Sample
    from curation.termination import terminable
    from curation.yaml_edit import EditError, edit_numbers, must_be_editable

    profile = pipelines.profile(options.profile, options.overrides)
    label = filter_of(profile, options.filter)
    target = target_of(profile, options.target)
    if options.write:  # whether it can be done is told before the work
        now = _numbers(profile, label, dict.fromkeys(_minimums(profile, label), "0.0"))
        try:
            must_be_editable(pipelines.path, now, pipelines.data)
        except EditError as error:
            complain(str(error))
            return 2
    with terminable():
        found = calibrate(profile, label, target, Sample(options.sample, options.seed, options.within), options.address)
    failure = None
    if options.write:
        try:
            edit_numbers(pipelines.path, _numbers(profile, label, found.solution.texts), pipelines.data)
        except EditError as error:  # what was found is shown all the same
            failure = str(error)
    written = options.write and failure is None
    if options.json:
        import json

        show(json.dumps({**found.to_json(), "written": written}, ensure_ascii=False, indent=1))
    else:
        for line in lines(found):
            show(line)
        show(_what_now(found, written, options.overrides, pipelines))
    if failure is not None:
        complain(failure)
        return 2
    return 0


def lines(found: Calibration) -> list[str]:
    """The result for people: the expected funnel of the whole input, the threshold, how well it is known."""
    from curation.calibrate import per_cent
    from curation.stats import funnel

    name, totals = found.profile.name, found.totals
    shape = funnel(totals, list(found.profile.filters))
    scale = found.of / found.units
    told = [f"{name}: expected of all {found.of:,} units, from {found.units:,} of them"]

    def row(title: str, dropped: int | None, left: int) -> None:
        gone = "" if dropped is None else f"{-round(dropped * scale):,}"
        share = f"{per_cent(left / shape['seen']):>8}" if shape["seen"] else ""
        told.append(f"  {title:<16}{gone:>14}  {round(left * scale):>14,}  {share}")

    left = shape["seen"]
    row("seen", None, left)
    drops = {"unreadable": sum(shape["unreadable"].values()), **shape["mappers"]}
    drops |= {label: numbers["dropped_first"] for label, numbers in shape["filters"].items()}
    for title, dropped in drops.items():
        left -= dropped
        row(title, dropped, left)
    interval = found.interval
    exactly = " (every unit is in the sample)" if found.units == found.of else ""
    told += [
        f"retention: {interval.estimate:.2%} expected, target {found.target:.2%}; 95 % interval "
        f"{interval.low:.2%} to {interval.high:.2%}{exactly}",
        f"sample: {found.units:,} of {found.of:,} units, {totals.seen:,} pairs seen, seed {found.sample.seed}"
        + (f"; {found.reused:,} units were scored by the run" if found.reused else ""),
    ]
    before, after = found.before, found.solution.texts
    for language, text in after.items():
        where = f"{found.label}.min" + (f".{language}" if language else "")
        told.append(f"threshold: {where} {before[language]} -> {text}")
        if not any(tie.language == language for tie in found.solution.ties):
            told.append(f"note: no pair of the sample in {language!r} passes the other filters: its number stays")
    for tie in found.solution.ties:
        if tie.samples > 1:
            told.append(
                f"tie: {tie.samples:,} samples lie exactly on {tie.threshold}: one step up keeps "
                f"{tie.kept_above / found.solution.seen:.2%}"
            )
    return told


def _what_now(found: Calibration, written: bool, overrides: Sequence[str], pipelines: Pipelines) -> str:
    if written:
        # What else was overridden and decides with the threshold; where the result lies, and on what it runs, does not.
        aside = (f"{found.label}.min", f"filters.{found.label}.min", "output", "resources", "target_retention")
        others = [text for text in overrides if not text.startswith(aside)]
        holds = f"; it holds with --set {' --set '.join(others)}" if others else ""
        return f"written: {pipelines.path}{holds}"
    texts = found.solution.texts
    value = f"={texts['']}" if "" in texts else f"={{{', '.join(f'{name}: {text}' for name, text in texts.items())}}}"
    setting = shlex.quote(f"{found.label}.min{value}")
    return f"use it: calibrate again with --write, or run (or rescore, after a run) with --set {setting}"


def _minimums(profile: Profile, label: str) -> dict[str, float]:
    rule: Any = profile.filters[label]
    minimums: dict[str, float] = rule.minimums
    return minimums


def _numbers(profile: Profile, label: str, texts: dict[str, str]) -> dict[tuple[str, ...], str]:
    """Where in the file each threshold stands."""
    return {
        ("profiles", profile.name, "filters", label, "min", *([language] if language else [])): text
        for language, text in texts.items()
    }


def _share(text: str) -> float:
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: a number above 0 and up to 1, such as 0.14")
    return number


def _points(text: str) -> float:
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no width: a number of percentage points above 0")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number
