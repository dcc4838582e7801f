"""A run from the driver's side: waves of units, and the data set's manifest at the end."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

from curation import attempts, lease, manifests, stats
from curation.cluster import JobError, cluster, must_fit
from curation.commit import remove_others
from curation.drift import Drift
from curation.job import Job, Outcome, run_wave
from curation.metrics import Live
from curation.plan import RUN_VERSION, Plan, RunError, asked, input_print, make_plan, own
from curation.profile import Fingerprints, Profile
from curation.progress import Progress, say
from curation.units import Unit
from shards.manifest import LIST_NAME, NAME, DatasetManifest, read_manifest, write_manifest
from shards.manifest import ManifestError as DatasetManifestError
from shards.storage import Storage, StorageError

# Units per Ray Data execution: its driver spends about 2 ms a block on planning.
WAVE = 2_000
# A temporary file that has not grown for so long was left by a dead run, seconds. Nobody else holds the lease, so this
# need not be long; workers of a driver that was just killed live on for a while, so at the start it is a minute.
DEAD_S = 10.0


@dataclass(frozen=True)
class Result:
    """How a run ended. `failed`: outcomes of the units that could not be committed. `drift`: see `Drift.verdict`."""

    totals: stats.Totals
    worked: int
    failed: list[Outcome]
    seconds: float
    drift: str | None = None


def run(
    profile: Profile,
    limit: int | None = None,
    address: str | None = None,
    *,
    replace: bool = False,
    redo: Sequence[str] = (),
    max_failed_units: int | None = None,
    metrics_port: int | None = None,
) -> Result:
    """Runs what is left of a profile. Raises `RunError`, `JobError`, `StorageError`, `RuleError` with one line each.

    A unit that fails is in `Result.failed` and under `failed/`; the others are committed. replace: units that have left
    the input are removed from the output first. redo: units (first digits of their ids) that are made again although
    they are committed. max_failed_units: `JobError` once more of them failed; None: no limit. metrics_port: where a Ray
    that is started for the run shows its numbers to Prometheus.
    """
    started = time.time()
    plan = make_plan(profile, limit, replace)
    for label, rule in profile.cheap.items():
        asked(f"filter {label!r}", rule.setup)  # what its check could not see is told before Ray starts
    output = plan.output
    for note in plan.notes:
        say(f"note: {note}")
    again = {_unit_called(plan, name) for name in redo}
    with lease.hold(output, say) as held:
        _prepare(plan, again)
        try:
            return _run(plan, address, held, max_failed_units, started, metrics_port)
        except (RunError, manifests.ManifestError, StorageError) as error:  # no mistake in the call: work had begun
            raise JobError(str(error)) from error


def _unit_called(plan: Plan, name: str) -> str:
    """The unit whose id begins with `name`. Raises `RunError` where that is none, or several."""
    found = [unit.unit_id for unit in plan.units if unit.unit_id.startswith(name)]
    if len(found) != 1 or len(name) < 6:
        many = f"{_count(len(found), 'unit')} of {plan.profile.name} {'begins' if len(found) == 1 else 'begin'} so"
        raise RunError(
            f"--redo {name}: {many}: give the first 12 digits of one, as the names of its files in ledger/ have them"
        )
    if found[0] in {unit.unit_id for unit in plan.units[plan.first or len(plan.units) :]}:
        raise RunError(f"--redo {name}: that unit lies beyond --limit, and would be left out: leave --limit out")
    return found[0]


def _run(
    plan: Plan,
    address: str | None,
    held: lease.Lease,
    max_failed_units: int | None,
    started: float,
    metrics_port: int | None,
) -> Result:
    """The work itself, on a folder that is prepared and held."""
    output, failed, ended = plan.output, list[Outcome](), set[str]()
    watch = Drift.of(output, plan.profile, plan.prints.decision, len(plan.units))
    with closing(work(plan, address, held, live=True, metrics_port=metrics_port)) as outcomes:
        for outcome in outcomes:
            ended.add(outcome.unit_id)
            if outcome.error is not None:
                failed.append(outcome)
            else:
                watch.add(outcome.seen, outcome.kept)
            if max_failed_units is not None and len(failed) > max_failed_units:
                raise JobError(
                    f"stopped: {_count(len(failed), 'unit')} failed, --max-failed-units allows {max_failed_units}; "
                    f"what is committed stays; the last: unit {outcome.unit_id[:12]}: {outcome.error}"
                )
    lost = {unit.unit_id for unit in plan.pending} - ended
    if lost:
        raise RunError(f"{len(lost)} units came to no end (a defect of the job): run again; first: {sorted(lost)[0]}")
    totals = finish(plan, failed)
    seconds = time.time() - started
    if ended:
        session = {"started": started, "seconds": seconds, "units": len(ended), "failed": len(failed)}
        output.write(f"sessions/{int(started * 1000)}.json", json.dumps(session).encode())
    # Nothing of this run is being written any more.
    output.sweep_temporary(DEAD_S)
    return Result(totals, len(ended), failed, seconds, watch.verdict(totals))


def open_again(output: Storage) -> None:
    """Says in manifest.json that the data set is not complete, before anything else tells of units that it lacks."""
    if not output.exists(NAME):
        return
    try:
        before = read_manifest(output)
    except DatasetManifestError:  # it is written anew at the end
        output.delete(NAME)
        return
    if before.complete:
        write_manifest(output, before.model_copy(update={"complete": False}))


def _prepare(plan: Plan, again: set[str]) -> None:
    """Brings the folder into the state that a run begins from; killed in the middle, the next run does it again.

    again: units that are made again although they are committed. What no longer belongs to the input goes in the order:
    the data set's manifest, unit manifests, files. Only then is the new input written into run.json, so that a run that
    comes after a kill, with or without --replace, sees what is left to do.
    """
    output = plan.output
    own(output, plan.prints)  # again: another run may have begun and ended before this one got the lease
    if again:
        open_again(output)
        manifests.forget(output, again)
    committed = manifests.committed(output)  # also what another run committed while this one waited for the lease
    if plan.gone or plan.other_input:
        if committed.keys() - {unit.unit_id for unit in plan.units} != plan.gone:
            raise RunError(f"{output.uri}: another run has just been at work here with another input: run again")
        if plan.gone:
            for name in (NAME, LIST_NAME):
                output.delete(name)
            manifests.forget(output, plan.gone)
        removed = remove_others(output, {unit.short for unit in plan.units})
        if removed:
            say(f"note: removed what came of {_count(removed, 'unit')} no longer in the input")
    plan.done = {unit.unit_id for unit in plan.units if committed.get(unit.unit_id) == plan.prints.decision}
    if len(plan.done) < len(plan.units):
        open_again(output)
    write_run(plan)
    output.sweep_temporary(lease.STALE_S)
    attempts.clear(output)
    done = {unit_id[:12] for unit_id in plan.done}
    for entry in output.list("failed", ".json"):
        if entry.path.removeprefix("failed/").removesuffix(".json") in done:  # killed just after its commit
            output.delete(entry.path)


def work(
    plan: Plan,
    address: str | None,
    held: lease.Lease,
    *,
    shards: bool = True,
    missing: tuple[str, ...] | None = None,
    live: bool = False,
    metrics_port: int | None = None,
) -> Generator[Outcome]:
    """Runs the pending units and yields each one's end.

    shards, missing: see `Job`. live: shows Prometheus its numbers. metrics_port: see `cluster`.
    """
    profile, pending = plan.profile, plan.pending
    if not pending:
        return
    job = Job(profile, plan.prints, plan.input.uri, plan.output.uri, shards, missing)
    say(f"{profile.name}: {len(pending):,} of {len(plan.units):,} units to do; starting Ray ...")
    with (
        cluster(address, metrics_port) as resources,
        Live(plan) if live else nullcontext(),
        Progress(len(pending), profile.name, kept="kept" if shards else "scored") as progress,
    ):
        waiting = must_fit(profile, resources, address)
        if waiting:
            say(f"note: {waiting}")
        _must_have(held)
        for outcome in _waves(job, pending, plan.output):
            if outcome.fatal:
                raise JobError(outcome.error or "the job cannot go on")
            progress.unit(outcome.listed, outcome.seen, outcome.kept, outcome.error is not None)
            yield outcome
            _must_have(held)


def _must_have(held: lease.Lease) -> None:
    if held.lost:
        raise JobError(held.lost)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _waves(job: Job, units: Sequence[Unit], output: Storage) -> Iterator[Outcome]:
    for first in range(0, len(units), WAVE):
        manifests.compact(output)  # first: a run that is killed in every wave would pile loose ones up
        yield from run_wave(job, units[first : first + WAVE])
    manifests.compact(output)


def write_run(plan: Plan) -> None:
    """run.json: the resolved profile, versions and the inputs' fingerprint; the first thing that a run writes."""
    packages = ("winnow-vl", "ray", "pyarrow", "pillow", "ftfy", "emoji", "open_clip_torch", "torch")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "run_version": RUN_VERSION,
        "profile": plan.profile.model_dump(mode="json"),
        "filters": {label: rule.name for label, rule in plan.profile.filters.items()},
        "mappers": [mapper.name for mapper in plan.profile.mappers],
        "score_fp": plan.prints.score,
        "decision_fp": plan.prints.decision,
        "identity": plan.prints.identity,
        "thresholds": plan.prints.thresholds,
        "input": {"uri": plan.input.uri, "units": len(plan.units), "sha256": input_print(plan.units)},
        "versions": versions,
    }
    plan.output.write("run.json", json.dumps(record, ensure_ascii=False, indent=1).encode(), durable=True)


def finish(plan: Plan, failed: Sequence[Outcome]) -> stats.Totals:
    """Sums the unit manifests, compares them with the plan, and writes manifest.json and shards.txt last."""
    every = {unit.unit_id for unit in plan.units}
    summary = manifests.sum_up(plan.output, plan.prints.decision, every)
    totals, found = summary.totals, summary.shards.keys()
    asked_for = {unit.unit_id for unit in plan.units[: plan.first]}
    missing = asked_for - found - {outcome.unit_id for outcome in failed}
    if missing:
        raise RunError(f"{len(missing)} planned units have no manifest although they ended: run again")
    write_dataset(plan.profile, plan.prints, plan.output, [unit.unit_id for unit in plan.units], summary)
    return totals


def write_dataset(
    profile: Profile,
    prints: Fingerprints,
    output: Storage,
    units: Sequence[str],
    summary: manifests.Summary,
    whole: bool = True,
) -> None:
    """Writes manifest.json and shards.txt. units: ids of the input's units, in its order; whole: of all of them."""
    dataset = DatasetManifest(
        name=profile.name,
        shards=[shard for unit in units if (shard := summary.shards.get(unit))],
        fingerprints={"score": prints.score, "decision": prints.decision},
        funnel=stats.funnel(summary.totals, list(profile.filters)),
        complete=whole and summary.shards.keys() == set(units),
    )
    write_manifest(output, dataset)
