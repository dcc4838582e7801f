"""A run from the driver's side: waves of units, and the data set's manifest at the end."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from curation import manifests, stats
from curation.job import Job, JobError, Outcome, cluster, must_fit, run_wave
from curation.plan import Plan, RunError, asked, make_plan, read_run
from curation.profile import Profile, digest
from curation.progress import Progress
from curation.units import Unit
from shards.manifest import NAME, DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.storage import Storage

# Units per Ray Data execution: its driver spends about 2 ms a block on planning.
WAVE = 2_000


@dataclass(frozen=True)
class Result:
    """How a run ended. `failed`: outcomes of the units that could not be committed."""

    totals: stats.Totals
    worked: int
    failed: list[Outcome]
    seconds: float


def run(profile: Profile, limit: int | None = None, address: str | None = None) -> Result:
    """Runs what is left of a profile. Raises `RunError`, `JobError`, `StorageError`, `RuleError` with one line each.

    A unit that fails is in `Result.failed` and under `failed/`; the others are committed.
    """
    started = time.time()
    plan = make_plan(profile, limit)
    for label, rule in profile.cheap.items():
        asked(f"filter {label!r}", rule.setup)  # what its check could not see is told before Ray starts
    output = plan.output
    for note in plan.notes:
        _say(f"note: {note}")
    _write_run(plan)
    output.sweep_temporary()
    for entry in output.list("attempts"):
        output.delete(entry.path)  # they count the deaths of workers within one run
    pending = plan.pending
    failed: list[Outcome] = []
    ended: set[str] = set()
    if pending:
        job = Job(profile, plan.prints, plan.input.uri, output.uri)
        _say(f"{profile.name}: {len(pending):,} of {len(plan.units):,} units to do; starting Ray ...")
        with cluster(address) as resources, Progress(len(pending), profile.name) as progress:
            waiting = must_fit(profile, resources, address)
            if waiting:
                _say(f"note: {waiting}")
            for outcome in _waves(job, pending, output):
                if outcome.fatal:
                    raise JobError(outcome.error or "the job cannot go on")
                ended.add(outcome.unit_id)
                progress.unit(outcome.listed, outcome.seen, outcome.kept, outcome.error is not None)
                if outcome.error is not None:
                    failed.append(outcome)
        lost = {unit.unit_id for unit in pending} - ended
        if lost:
            raise RunError(
                f"{len(lost)} units came to no end (a defect of the job): run again; first: {sorted(lost)[0]}"
            )
    totals = finish(plan, failed)
    seconds = time.time() - started
    if pending:
        session = {"started": started, "seconds": seconds, "units": len(ended), "failed": len(failed)}
        output.write(f"sessions/{int(started * 1000)}.json", json.dumps(session).encode())
    return Result(totals, len(ended), failed, seconds)


def _waves(job: Job, units: Sequence[Unit], output: Storage) -> Iterator[Outcome]:
    for first in range(0, len(units), WAVE):
        yield from run_wave(job, units[first : first + WAVE])
        manifests.compact(output)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _write_run(plan: Plan) -> None:
    """run.json: the resolved profile, versions and the inputs' fingerprint; the first thing that a run writes."""
    packages = ("winnow-vl", "ray", "pyarrow", "pillow", "ftfy", "emoji", "open_clip_torch", "torch")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "profile": plan.profile.model_dump(mode="json"),
        "filters": {label: rule.name for label, rule in plan.profile.filters.items()},
        "mappers": [mapper.name for mapper in plan.profile.mappers],
        "score_fp": plan.prints.score,
        "decision_fp": plan.prints.decision,
        "identity": plan.prints.identity,
        "thresholds": plan.prints.thresholds,
        "input": {"uri": plan.input.uri, "units": len(plan.units), "sha256": digest([u.unit_id for u in plan.units])},
        "versions": versions,
    }
    plan.output.write("run.json", json.dumps(record, ensure_ascii=False, indent=1).encode())


def finish(plan: Plan, failed: Sequence[Outcome]) -> stats.Totals:
    """Sums the unit manifests, compares them with the plan, and writes manifest.json and shards.txt last."""
    every = {unit.unit_id for unit in plan.units}
    totals = stats.Totals()
    entries: dict[str, ShardEntry] = {}
    found: set[str] = set()
    for manifest in manifests.read_all(plan.output, every):
        if manifest["decision_fp"] != plan.prints.decision:
            continue
        found.add(manifest["unit_id"])
        totals.add(manifest)
        shard = manifest["files"]["shard"]
        if shard:
            entries[manifest["unit_id"]] = ShardEntry(
                url=shard["path"], nsamples=manifest["kept"], bytes=shard["bytes"], sha256=shard["sha256"]
            )
    asked_for = {unit.unit_id for unit in plan.units[: plan.first]}
    missing = asked_for - found - {outcome.unit_id for outcome in failed}
    if missing:
        raise RunError(f"{len(missing)} planned units have no manifest although they ended: run again")
    dataset = DatasetManifest(
        name=plan.profile.name,
        shards=[entries[unit.unit_id] for unit in plan.units if unit.unit_id in entries],
        fingerprints={"score": plan.prints.score, "decision": plan.prints.decision},
        funnel=stats.funnel(totals, list(plan.profile.filters)),
        complete=found == every,
    )
    write_manifest(plan.output, dataset)
    return totals


def load_totals(profile: Profile) -> tuple[stats.Totals, float, list[dict[str, Any]], bool]:
    """What `stats` shows of a run on disk: totals, wall seconds of all its sessions, failed units, whether complete."""
    output = Storage.open(profile.run_folder)
    if not output.exists("run.json"):
        raise RunError(f"{output.uri}: no run here yet: python -m curation run {profile.name}")
    decision = read_run(output)["decision_fp"]
    totals = stats.total(m for m in manifests.read_all(output) if m["decision_fp"] == decision)
    sessions = [manifests.read_json(output, entry.path, ("seconds",)) for entry in output.list("sessions", ".json")]
    complete = output.exists(NAME) and read_manifest(output).complete
    return totals, sum(session["seconds"] for session in sessions), manifests.failures(output), complete
