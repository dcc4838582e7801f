"""Decides a run again from its ledger: other thresholds, no images, no models.

The one decision: a decision lies beside the run, under `decisions/<decision_fp>/`, and is whole by itself: its ledger,
its unit manifests, its funnel. The run it came of is never changed; `select` adds the shards.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import attempts, decision_folder, lease, ledger, manifests, stats
from curation.cluster import JobError
from curation.commit import unit_manifest, write_described
from curation.missing import FOLDER, read_scores
from curation.opened import (
    DECIDED,
    Opened,
    ledger_path,
    must_be_whole,
    open_run,
    read_ledger,
    unit_of,
)
from curation.plan import Plan, RunError, asked, differences
from curation.profile import Fingerprints, Profile
from curation.progress import Progress, say
from curation.redecide import Again, columns_of, decide_again
from curation.run import DEAD_S, work
from curation.tasks import Ended, spread, usual_workers
from curation.units import SUFFIXES, Unit
from shards.inputs import resolve_inputs
from shards.storage import Storage, StorageError

# One more process for so many units: starting one takes a second, a unit of 10,000 rows less than half of one.
UNITS_A_WORKER = 8
# A unit's new manifest, its changes, its unscored samples.
Answer: TypeAlias = tuple[dict[str, Any], Counter[str], int]


@dataclass(frozen=True)
class Decided:
    """What came of deciding again.

    `folder`: None for a dry run. `changed`: samples by what became of them, as `<reason before> -> <reason now>`, of
    `counted` units: those of this call. `unscored`: samples that a pixel filter has yet to see. `worked`: units decided
    by this call. `failed`: errors of units.
    """

    base: stats.Totals
    totals: stats.Totals
    folder: str | None
    changes: list[str]
    changed: Counter[str]
    unscored: int
    worked: int
    seconds: float
    counted: int
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rescorer:
    """Decides one unit, in a worker. write: also writes what it decides below `decision_uri`."""

    profile: Profile
    prints: Fingerprints
    order: tuple[str, ...]
    run_uri: str
    decision_uri: str
    scores: frozenset[str]  # units (short ids) with scores that were made later
    write: bool

    def __call__(self, manifest: dict[str, Any]) -> Answer:
        """Decides the unit. Where any of its samples is unscored, nothing is written."""
        started = time.perf_counter()
        unit, run = unit_of(manifest), Storage.open(self.run_uri)
        rows = read_ledger(run, manifest, None if self.write else columns_of(self.profile.filters))
        before = rows.column("reason")
        printed = manifest["files"]["ledger"]["sha256"]
        extra = read_scores(run, unit, self.profile, self.prints, printed) if unit.short in self.scores else {}
        again = decide_again(rows, self.profile, self.order, extra)
        unscored = int(np.count_nonzero(again.unscored))
        # What the run wrote goes along, so that `select` finds it.
        rest = {"hits": manifest["hits"], "warnings": manifest["warnings"], "run_files": manifest["files"]}
        if unscored or not self.write:
            files: dict[str, Any] = {"ledger": None, "shard": None, "index": None, "samples": None}
            decided = unit_manifest(self.profile, self.prints, unit, again.table, {**rest, "files": files}, {})
            return decided, _changes(before, again), unscored
        output = Storage.open(self.decision_uri)
        columns = ledger.schema(self.profile.filters)
        table = again.table.select(columns.names).cast(columns)
        written = write_described(output, ledger_path(unit), ledger.to_parquet(table))
        files = {"ledger": written, "shard": None, "index": None, "samples": None}
        seconds = {"rescore": time.perf_counter() - started}
        decided = unit_manifest(self.profile, self.prints, unit, table, {**rest, "files": files}, seconds)
        output.write(f"{DECIDED}/{unit.short}.json", json.dumps(decided, ensure_ascii=False).encode(), durable=True)
        return decided, _changes(before, again), 0


def _changes(before: pa.ChunkedArray, again: Again) -> Counter[str]:
    """Samples by what became of them, of those whose reason changed."""
    now = pc.fill_null(again.table.column("reason").combine_chunks(), "kept")
    now = pc.if_else(pa.array(again.unscored), "unscored", now)
    pairs = pa.table({"before": pc.fill_null(before, "kept"), "now": now})
    pairs = pairs.filter(pc.not_equal(pairs.column("before"), pairs.column("now")))
    counted = pairs.group_by(["before", "now"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({f"{pair['before']} -> {pair['now']}": pair["count_all"] for pair in counted})


def rescore(
    profile: Profile,
    *,
    dry_run: bool = False,
    partial: bool = False,
    address: str | None = None,
    workers: int | None = None,
) -> Decided:
    """Decides a profile's run again by the profile's thresholds.

    dry_run: writes nothing. partial: also takes a run that is not complete. workers: processes; None: what is worth it.
    Where samples are unscored nothing is written either: `Decided.unscored` counts them. Raises `RunError`, `JobError`,
    `StorageError`, `RuleError` with one line each. A unit that fails is in `Decided.failed`; the others are decided.
    """
    started = time.time()
    opened, prints = open_base(profile, partial)
    changes = differences(opened.record["thresholds"], prints.thresholds) or (
        ["the order of the filters"] if prints.decision != opened.decision else []
    )
    output = decision_folder.place(opened, prints)
    found = decision_folder.standing(output, opened, prints)
    task = Rescorer(
        profile, prints, tuple(opened.labels), opened.output.uri, output.uri, _scored_later(opened.output), False
    )
    todo = found.every if dry_run else found.todo
    places = (address, workers or usual_workers(len(todo), UNITS_A_WORKER))
    base, looked = opened.totals(), None
    if dry_run or (todo and may_leave_unscored(opened, prints, profile)):
        with closing(spread(task, _slim(opened, todo), *places, name=_called)) as ended:
            looked = _sum(profile.name, ended, len(todo))
        if dry_run or looked.unscored:
            before = manifests.sum_up(output, prints.decision, found.every - todo, folder=DECIDED).totals
            before.merge(looked.totals)
            return replace(looked, base=base, totals=before, changes=changes, seconds=time.time() - started)
    with lease.hold(output, say) as held:
        try:
            decision_folder.begin(output, opened, profile, prints, found)
            units = spread(replace(task, write=True), _slim(opened, todo), *places, name=_called)
            with closing(units), closing(decision_folder.compacting(units, output, held)) as ended:
                decided = _sum(profile.name, ended, len(todo))
            if decided.unscored:
                raise RunError(f"{output.uri}: scores have gone since they were looked at: call it again")
            totals = decision_folder.end(output, opened, prints, changes, len(found.every))
            output.sweep_temporary(min(lease.STALE_S, time.time() - started))
        except (RunError, manifests.ManifestError, StorageError) as error:  # work had begun
            raise JobError(str(error)) from error
    counted, changed = (looked.counted, looked.changed) if looked else (decided.counted, decided.changed)
    return replace(
        decided,
        base=base,
        totals=totals,
        folder=output.uri,
        changes=changes,
        changed=changed,
        counted=counted,
        seconds=time.time() - started,
    )


def score_missing(profile: Profile, partial: bool, address: str | None, workers: int | None) -> list[str]:
    """Makes the pixel scores that the profile's thresholds need and the run has not; gives the errors of units.

    Raises as `rescore` does.
    """
    started = time.time()
    opened, prints = open_base(profile, partial)
    if not may_leave_unscored(opened, prints, profile):
        return []
    task = Rescorer(profile, prints, tuple(opened.labels), opened.output.uri, "", _scored_later(opened.output), False)
    count = opened.totals().units
    places = (address, workers or usual_workers(count, UNITS_A_WORKER))
    lacking: dict[str, Unit] = {}
    samples = 0

    def told() -> Generator[Ended[dict[str, Any], Answer]]:
        nonlocal samples
        with closing(spread(task, _slim(opened), *places, name=_called)) as ended:
            for end in ended:
                if end.value is not None and end.value[2]:
                    lacking[end.item["unit_id"]] = unit_of(end.item)
                    samples += end.value[2]
                yield end

    with closing(told()) as ends:
        looked = _sum(profile.name, ends, count)
    if looked.failed or not lacking:
        return looked.failed
    say(f"{profile.name}: {samples:,} samples of {len(lacking):,} units to score")
    for label, rule in profile.pixel.items():
        asked(f"filter {label!r}", rule.check)
    source, _ = resolve_inputs(profile.input.path, SUFFIXES[profile.input.format])
    plan = Plan(profile, prints, source, opened.output, list(lacking.values()))
    with lease.hold(opened.output, say) as held:
        attempts.clear(opened.output)
        with closing(work(plan, address, held, missing=task.order)) as outcomes:
            failed = [f"unit {end.unit_id[:12]}: {end.error}" for end in outcomes if end.error is not None]
        opened.output.sweep_temporary(min(DEAD_S, time.time() - started))
    return failed


def open_base(profile: Profile, partial: bool = False) -> tuple[Opened, Fingerprints]:
    """A profile's run, and the profile's fingerprints, which differ from the run's by thresholds and order only.

    Raises `RunError` where the run is not there or not whole, or where the profile would score otherwise.
    """
    opened = open_run(profile.run_folder)
    if not partial:
        must_be_whole(opened)
    prints = opened.prints(profile)
    identity = opened.record["identity"]
    if prints.score != opened.record["score_fp"]:
        never = [label for label in profile.filters if label not in identity.get("filters", {})]
        if never:
            raise RunError(
                f"{opened.output.uri}: its run did not score {never[0]!r}, so no threshold of it can be decided: "
                "leave that filter out, or run the profile again with another output.path"
            )
        told = differences(identity, json.loads(json.dumps(prints.identity)))
        more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
        raise RunError(
            f"{opened.output.uri}: its scores are of another configuration ({'; '.join(told[:4])}{more}): scores "
            f"cannot be decided anew, only made: `python -m curation run {profile.name}` with another output.path"
        )
    return opened, prints


def may_leave_unscored(opened: Opened, prints: Fingerprints, profile: Profile) -> bool:
    """Whether more samples than before may reach a pixel filter: not if only the last one's thresholds differ."""
    pixel = list(profile.pixel)
    if not pixel:
        return False
    before, now = (list(found.items())[:-1] for found in (opened.record["thresholds"], _plain(prints.thresholds)))
    return bool(before != now or opened.labels[-1] != pixel[-1])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _slim(opened: Opened, unit_ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """The run's unit manifests without their sums: 100,000 of them would be gigabytes. unit_ids: only these."""
    wanted = ("unit_id", "profile", "input", "files", "hits", "warnings")
    for manifest in opened.units(unit_ids):
        yield {name: manifest[name] for name in wanted}


def _called(manifest: dict[str, Any]) -> str:
    """What messages call a unit."""
    return str(manifest["unit_id"][:12])


def _scored_later(run: Storage) -> frozenset[str]:
    return frozenset(entry.path.removeprefix(f"{FOLDER}/").removesuffix(".parquet") for entry in run.list(FOLDER))


def _sum(
    name: str, ended: Iterator[Ended[dict[str, Any], tuple[dict[str, Any], Counter[str], int]]], count: int
) -> Decided:
    """Sums what was decided. What is said of the run as a whole is left to the caller."""
    totals, changed, unscored, failed = stats.Totals(), Counter[str](), 0, list[str]()
    with Progress(count, f"{name}: rescore") as progress:
        for end in ended:
            if end.value is None:
                failed.append(f"unit {end.item['unit_id'][:12]}: {end.error}")
                progress.unit(0, 0, 0, True)
                continue
            manifest, of_unit, missing = end.value
            totals.add(manifest)
            changed.update(of_unit)
            unscored += missing
            progress.unit(manifest["listed"], manifest["seen"], manifest["kept"], False)
    return Decided(stats.Totals(), totals, None, [], changed, unscored, count, 0.0, count, failed)
