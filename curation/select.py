"""The shards of a later decision: from the run's own shards, and from the raw input for what the run had dropped.

The one decision: a selected decision is a run's folder like any other, with the bytes that a fresh run with its
thresholds would have written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from curation import lease, ledger, manifests, stats
from curation.cluster import JobError
from curation.commit import fit_for_review, record_failure, unit_manifest, write_samples
from curation.missing import raw_images
from curation.opened import (
    DECIDED,
    DECISIONS,
    Opened,
    must_be_up_to_date,
    must_be_whole,
    open_run,
    read_ledger,
    unit_of,
)
from curation.plan import RunError
from curation.profile import Fingerprints, Profile
from curation.progress import Progress, say
from curation.raw import SourceError
from curation.run import WAVE, open_again, write_dataset
from curation.tasks import spread, usual_workers
from curation.unit import Image, thumbnail
from curation.units import SUFFIXES, Unit
from shards.index import SUFFIX
from shards.inputs import resolve_inputs
from shards.storage import NotFound, Storage, StorageError, Unavailable
from shards.tar import group, scan

# Heap of a task on a cluster: libraries, and a unit's shard beside its raw file.
TASK_BYTES = 2**30


class SelectError(Exception):
    """A unit's samples cannot be brought together: one line with the file and what to do."""


@dataclass(frozen=True)
class Selected:
    """What came of it. `totals`: of the decision; `worked`: units of this call; `failed`: their errors."""

    totals: stats.Totals
    folder: str
    worked: int
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Selector:
    """Writes one unit's samples, in a worker."""

    profile: Profile
    prints: Fingerprints
    run_uri: str
    decision_uri: str
    input_uri: str

    def __call__(self, decided: dict[str, Any]) -> dict[str, Any]:
        """Gives the unit's manifest, which is written last. decided: that of its decision."""
        started = time.perf_counter()
        run, output, unit = Storage.open(self.run_uri), Storage.open(self.decision_uri), unit_of(decided)
        table = read_ledger(output, decided).cast(
            ledger.schema(self.profile.filters)
        )  # what Parquet added is not written
        keys = table.column("key").to_pylist()
        kept = np.flatnonzero(np.asarray(pc.is_null(table.column("reason")), dtype=bool)).tolist()
        review = fit_for_review(table)
        # What the run has written: images of what it kept, thumbnails of a few that it dropped.
        at_hand, made = _shard_images(run, decided), _thumbnails(run, decided)
        images: list[Image] = [None] * len(table)
        for row in {*kept, *review}:
            images[row] = at_hand.get(keys[row])
        lacking = [row for row in kept if images[row] is None]
        for_review = [row for row in review if images[row] is None and keys[row] not in made]
        warnings = self._fetch(unit, table, images, lacking, for_review)
        pictures = {row: made[keys[row]] if keys[row] in made else thumbnail(images[row]) for row in review}
        files = {"ledger": decided["files"]["ledger"]}
        files |= write_samples(self.profile, unit, table, images, pictures, output)
        rest = {"hits": decided["hits"], "warnings": [*decided["warnings"], *warnings], "files": files}
        seconds = {"select": time.perf_counter() - started}
        manifest = unit_manifest(self.profile, self.prints, unit, table, rest, seconds)
        output.write(f"units/{unit.short}.json", json.dumps(manifest, ensure_ascii=False).encode(), durable=True)
        output.delete(f"failed/{unit.short}.json")
        return manifest

    def _fetch(
        self, unit: Unit, table: pa.Table, images: list[Image], lacking: Sequence[int], for_review: Sequence[int]
    ) -> list[str]:
        """Puts the images that the run did not keep into their rows; gives warnings.

        A picture for review that cannot be had is a warning; a sample that cannot is the unit's failure.
        """
        if not lacking and not for_review:
            return []
        try:
            raw = raw_images(self.profile, Storage.open(self.input_uri), unit, table.column("source_key").to_pylist())
        except (SourceError, StorageError) as error:
            if lacking:
                need = f"{len(lacking):,} samples are kept now that the run had dropped, and stand nowhere else"
                raise SelectError(f"{error} ({need})") from error
            return [f"{unit.name}: {len(for_review)} samples for review have no picture: {error}"]
        for row in (*lacking, *for_review):
            images[row] = raw[row]
        return []


def _redo(decided: dict[str, Any]) -> str:
    return f"make its unit again: python -m curation run {decided['profile']} --redo {decided['unit_id'][:12]}"


def _shard_images(run: Storage, decided: dict[str, Any]) -> dict[str, Image]:
    """By key, the images of the unit's shard as the run wrote it, which is compared with its manifest."""
    about = decided["run_files"]["shard"]
    if about is None:
        return {}
    where = run.where(about["path"])
    try:
        buffer = run.view(about["path"])
    except NotFound as error:
        raise SelectError(f"{where}: missing, though its unit is committed: {_redo(decided)}") from error
    if buffer.size != about["bytes"] or hashlib.sha256(buffer).hexdigest() != about["sha256"]:
        raise SelectError(f"{where}: damaged, its sha256 is not that of its unit's manifest: {_redo(decided)}")
    view = memoryview(buffer).cast("B")
    found: dict[str, Image] = {}
    for sample in group(scan(view)):
        part = next(member for name, member in sample.parts.items() if name not in ("txt", "json"))
        found[sample.key] = view[part.offset : part.offset + part.size]
    return found


def _thumbnails(run: Storage, decided: dict[str, Any]) -> dict[str, bytes | None]:
    """By key, the thumbnails that the run made."""
    path = decided["run_files"]["samples"]["path"]
    try:
        with run.open_input(path) as file:
            found = pq.read_table(file, columns=["key", "thumbnail"])
    except (StorageError, OSError, pa.ArrowException) as error:
        if isinstance(error, Unavailable):
            raise
        what = str(error).splitlines()[0]
        raise SelectError(f"{run.where(path)}: cannot be read ({what}): {_redo(decided)}") from error
    return dict(zip(found.column("key").to_pylist(), found.column("thumbnail").to_pylist(), strict=True))


def select(
    profile: Profile,
    decision: str | None = None,
    *,
    partial: bool = False,
    address: str | None = None,
    workers: int | None = None,
) -> Selected:
    """Writes the shards of a decision that `rescore` made, and goes on where an earlier call ended.

    decision: the first digits of its fingerprint; None: that of the profile's thresholds. partial: also takes a
    decision that is not complete. workers: processes; None: one a CPU. Raises `RunError`, `JobError`, `StorageError`,
    `RuleError` with one line each. A unit that fails is in `Selected.failed` and under `failed/`.
    """
    started = time.time()
    run = open_run(profile.run_folder)
    decided = open_decision(run, profile, decision)
    if not partial:
        must_be_whole(decided)
    profile = decided_profile(profile, decided)
    prints, output = decided.prints(profile), decided.output
    try:
        source, _ = resolve_inputs(profile.input.path, SUFFIXES[profile.input.format])
        input_uri = source.uri
    except StorageError:  # what it is needed for says so
        input_uri = run.record["input"]["uri"]
    task = Selector(profile, prints, run.output.uri, output.uri, input_uri)
    with lease.hold(output, say) as held:
        decided = open_run(output.uri)  # again: a `rescore` may have been at work before this one got the lease
        if not partial:
            must_be_whole(decided)
        must_be_up_to_date(run, decided, partial)
        try:
            return _select(task, decided, held, address, workers, started)
        except (RunError, manifests.ManifestError, StorageError) as error:  # work had begun
            raise JobError(str(error)) from error


def _select(
    task: Selector, decided: Opened, held: lease.Lease, address: str | None, workers: int | None, started: float
) -> Selected:
    output, profile, prints = decided.output, task.profile, task.prints
    every = set(manifests.committed(output, DECIDED))
    standing = manifests.committed(output)
    done = {unit_id for unit_id in every if standing.get(unit_id) == prints.decision}
    done -= _lost(output, prints.decision, done)
    if len(done) < len(every):
        open_again(output)
    manifests.forget(output, standing.keys() - done)
    todo = decided.units(every - done)
    failed: list[str] = []
    manifests.compact(output)  # first: a call that is killed in every wave would pile loose ones up
    ends = spread(
        task,
        todo,
        address,
        workers or usual_workers(len(every) - len(done)),
        memory=TASK_BYTES,
        name=lambda manifest: str(manifest["unit_id"][:12]),
    )
    with closing(ends) as ended, Progress(len(every) - len(done), f"{profile.name}: select") as progress:
        for number, end in enumerate(ended, 1):
            if held.lost:
                raise JobError(held.lost)
            if end.value is None:
                unit = unit_of(end.item)
                record_failure(output, unit, end.error or "")
                failed.append(f"unit {unit.short}: {end.error}")
                progress.unit(0, 0, 0, True)
                continue
            progress.unit(end.value["listed"], end.value["seen"], end.value["kept"], False)
            if number % WAVE == 0:
                manifests.compact(output)
    manifests.compact(output)
    summary = manifests.sum_up(output, prints.decision, every)
    order = sorted((m["input"]["path"], m["input"]["range"][0] or 0, m["unit_id"]) for m in decided.units())
    write_dataset(profile, prints, output, [unit_id for _, _, unit_id in order], summary, decided.complete)
    output.sweep_temporary(min(lease.STALE_S, time.time() - started))
    return Selected(summary.totals, output.uri, len(every) - len(done), failed, time.time() - started)


def _lost(output: Storage, decision: str, done: Set[str]) -> set[str]:
    """Units that are selected and whose files do not stand as their manifests say: they are selected again."""
    shards = manifests.sum_up(output, decision, set(done)).shards
    sizes = {entry.path: entry.size for folder in ("shards", "samples") for entry in output.list(folder)}
    return {
        unit_id
        for unit_id, shard in shards.items()
        if f"samples/{unit_id[:12]}.parquet" not in sizes
        or (shard is not None and (sizes.get(shard.url) != shard.bytes or f"{shard.url}{SUFFIX}" not in sizes))
    }


def open_decision(run: Opened, profile: Profile, decision: str | None = None) -> Opened:
    """A later decision of a run. decision: the first digits of its fingerprint; None: that of the profile's thresholds.

    Raises `RunError` where there is none, and says which there are.
    """
    known = run.output.folders(DECISIONS)
    wanted = run.prints(profile).decision if decision is None else decision
    found = [name for name in known if name.startswith(wanted)]
    if len(found) == 1:
        return open_run(run.output.where(f"{DECISIONS}/{found[0]}"))
    there = f"there are {', '.join(name[:16] for name in known)} (--decision)" if known else "there is none"
    if len(found) > 1:
        raise RunError(f"{run.output.uri}: {wanted!r} begins {len(found)} decisions: {there}")
    if decision is not None:
        raise RunError(f"{run.output.uri}: no decision begins with {decision!r}: {there}")
    if wanted == run.decision:
        raise RunError(f"{run.output.uri}: these thresholds are those of the run itself, whose shards stand: {there}")
    raise RunError(
        f"{run.output.uri}: nothing is decided for these thresholds: call `rescore` with them first; {there}"
    )


def decided_profile(profile: Profile, decided: Opened) -> Profile:
    """The profile with the thresholds of a decision. Raises `RunError` where its scores are of another one."""
    try:
        found = profile.deciding(decided.record["thresholds"])
        if decided.prints(found).decision == decided.decision:
            return found
    except (KeyError, ValidationError):
        pass
    raise RunError(
        f"{decided.output.uri}: decided on scores of another configuration than the profile's as it is now: bring the "
        "profile back to what it was, or rescore"
    )
