"""The Ray Data graph: units -> [read, clean, cheap filters] -> [pixels, actor pool] -> [commit] -> one row a unit.

The one place that names Ray Data. A unit is one block from end to end; functions in the graph never raise, they give
back a status row; whatever kills a worker is retried by Ray, and attempt markers stop a unit that kills every worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from curation import attempts, ledger
from curation.block import from_table, state_of, to_table, with_state
from curation.cluster import RayGaveUp, nodes
from curation.commit import commit, record_failure
from curation.metrics import watch_batches
from curation.missing import commit_scores, judge_missing
from curation.profile import Fingerprints, Profile
from curation.resources import COMMIT_CPUS, Shares, fit
from curation.unit import Judged, describe, drop_images, in_words, judge, score_pixels
from curation.units import Unit
from filters.base import Filter, RuleError, Scorer
from shards.storage import Storage, StorageError

# Nothing at all happened for so long: a model may be loading over a slow network, more is a hang (Ray's default). Ray
# sees a unit only when it ends, and on a CPU the larger models score one image in seconds.
NO_PROGRESS_S = 1800
SECONDS_AN_IMAGE = 5
# Actors that die in their constructor one after another before the job gives up; Ray's default is the first.
ACTOR_DEATHS = 3
# A model on a CPU asks for the same tens of MB at every layer. glibc would give them back to the kernel each time and
# fault them in again, page by page: 6 to 9 % of an actor's CPU. One arena, since others hold no block over 64 MB.
KEEP_FREED = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**30)}

# What ends a worker on purpose. Everything else that code and libraries raise is one unit's failure: Rust's panics, for
# one, are no `Exception`.
_LEAVE = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What every task of a run is told. shards: whether what is kept is also written.

    missing: the job makes the scores that a run of this order of filters has not, and the output is that run's folder.
    """

    profile: Profile
    prints: Fingerprints
    input_uri: str
    output_uri: str
    shards: bool = True
    missing: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """A unit's end, as the driver hears of it. `error`: None for a committed unit; `fatal`: no unit can succeed."""

    unit_id: str
    listed: int = 0
    seen: int = 0
    kept: int = 0
    error: str | None = None
    fatal: bool = False


def run_wave(job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Runs units, at most a wave of them (Ray's driver spends about 2 ms a block), and yields each one's end."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
    from ray.data.exceptions import ExecutionTimeoutError

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a unit stays one block
    context.max_consecutive_actor_init_deaths = ACTOR_DEATHS
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told once, by us
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    shares = fit(job.profile, nodes(), max(unit.size for unit in units))
    patience = NO_PROGRESS_S
    if job.profile.pixel and not shares.actor_gpus:
        patience += SECONDS_AN_IMAGE * max(unit.samples or job.profile.units.max_samples for unit in units)
    context.execution_no_progress_timeout_s = patience
    if shares.blocks:
        # Else units pile up before slow actors until half of the object store is full of them.
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=shares.blocks)
    reading: dict[str, Any] = {"num_cpus": shares.read_cpus, "memory": shares.read_memory, **whole}
    with DataContext.current(context):
        rows = [{"unit": unit.to_json()} for unit in units]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        if not job.profile.pixel:
            data = data.map_batches(read_and_commit, fn_args=(job,), **reading)
        else:
            # Ray would run readers inside the actors where both ask for the same: an explicit `max_retries` (its own
            # default) keeps them two operators, so that all other CPUs read.
            data = data.map_batches_internal(read, fn_args=(job,), max_retries=-1, **reading)
            low, high = shares.actors
            # map_batches refuses batch_size=None beside a GPU; a unit has to stay whole, and batches are the actor's.
            data = data.map_batches_internal(
                PixelActor,
                fn_constructor_args=(job, shares),
                compute=ActorPoolStrategy(min_size=low, max_size=high, initial_size=shares.start),
                num_cpus=shares.actor_cpus,
                num_gpus=shares.actor_gpus or None,
                memory=shares.actor_memory,
                runtime_env={"env_vars": KEEP_FREED},
                **whole,
            )
            data = data.map_batches(finish, fn_args=(job,), num_cpus=COMMIT_CPUS, **whole)
        try:
            for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for text in block.column("outcome").to_pylist():
                    yield Outcome(**json.loads(text))
        except ExecutionTimeoutError as error:
            raise RayGaveUp(
                f"Ray gave up: no unit moved for {patience / 60:.0f} minutes (no nodes, or units too large for their "
                "actors: lower units.max_samples); run again to go on with the units left"
            ) from error
        except ray.exceptions.RayError as error:
            raise RayGaveUp(f"Ray gave up ({describe(error)}): run again to go on with the units left") from error


# --- what runs in workers; each function takes one whole unit and never raises ---


def read_and_commit(block: pa.Table, job: Job) -> pa.Table:
    """The whole of a unit whose profile needs no pixels."""
    worker = Worker.of(job)
    unit = Unit.from_json(block.column("unit")[0].as_py())
    judged = worker.attempt(unit, "read", lambda: worker.judge(unit))
    return _outcome(judged if isinstance(judged, Outcome) else worker.commit(unit, lambda: judged))


def read(block: pa.Table, job: Job) -> pa.Table:
    """Reads and judges a unit; one that is decided already (or empty) is committed here and goes on as a status row."""
    worker = Worker.of(job)
    unit = Unit.from_json(block.column("unit")[0].as_py())

    def work() -> Judged | pa.Table:
        judged = worker.judge(unit)
        return to_table(judged) if drop_images(job.profile, judged) else judged

    result = worker.attempt(unit, "read", work)
    if isinstance(result, pa.Table):
        return result
    outcome = result if isinstance(result, Outcome) else worker.commit(unit, lambda: result)
    return _status(job.profile.cheap, outcome)


class PixelActor:
    """Holds the models of the pixel filters."""

    def __init__(self, job: Job, shares: Shares) -> None:
        self.worker = Worker.of(job)
        self.job = job
        self.error: str | None = None
        os.environ["OMP_NUM_THREADS"] = str(shares.threads)
        try:
            self.scorers: dict[str, Scorer] = {
                label: rule.setup("cuda" if shares.actor_gpus else "cpu", job.profile.resources.clip.batch_size)
                for label, rule in job.profile.pixel.items()
            }
            watch_batches(job.profile.name, self.scorers)
        except _LEAVE:
            raise
        except BaseException as error:  # noqa: BLE001  told with the first unit: Ray would retry it in silence
            self.error = str(error) if isinstance(error, RuleError) else f"a model cannot be loaded: {describe(error)}"
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(shares.threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        state = state_of(block)
        if "outcome" in state:
            return _status(self.job.profile.filters, Outcome(**state["outcome"]))
        unit = Unit.from_json(state["unit"])
        if self.error is not None:
            return _status(self.job.profile.filters, Outcome(unit.unit_id, error=self.error, fatal=True))

        def work() -> pa.Table:
            judged = from_table(block)
            score_pixels(self.job.profile, judged, self.scorers)
            drop_images(self.job.profile, judged)
            return to_table(judged)

        result = self.worker.attempt(unit, "pixels", work)
        return result if isinstance(result, pa.Table) else _status(self.job.profile.filters, result)


def finish(block: pa.Table, job: Job) -> pa.Table:
    """Commits a scored unit."""
    state = state_of(block)
    if "outcome" in state:
        return _outcome(Outcome(**state["outcome"]))
    return _outcome(Worker.of(job).commit(Unit.from_json(state["unit"]), lambda: from_table(block)))


class Worker:
    """What a worker process keeps between units of one job: open storage and the cheap filters' scorers."""

    _cached: tuple[tuple[str, ...], Worker] | None = None

    def __init__(self, job: Job) -> None:
        self.job = job
        self.input = Storage.open(job.input_uri)
        self.output = Storage.open(job.output_uri)
        self._scorers: dict[str, Scorer] | None = None

    @classmethod
    def of(cls, job: Job) -> Worker:
        key = (job.prints.score, job.prints.decision, job.input_uri, job.output_uri, str(job.missing), str(job.shards))
        if cls._cached is None or cls._cached[0] != key:
            cls._cached = (key, cls(job))
        return cls._cached[1]

    def judge(self, unit: Unit) -> Judged:
        job = self.job
        if job.missing is not None:
            return judge_missing(job.profile, job.prints, self.input, self.output, unit, job.missing)
        if self._scorers is None:
            self._scorers = {label: rule.setup() for label, rule in self.job.profile.cheap.items()}
        return judge(self.job.profile, self.input, unit, self._scorers)

    def attempt(self, unit: Unit, step: str, work: Callable[[], Result]) -> Result | Outcome:
        """Runs `work` behind an attempt marker: a unit that kills every worker is given up."""
        name = f"{unit.short}.{step}"
        try:
            number = attempts.begin(self.output, name, _node(), _living_nodes)
            try:
                result = work()
            except _LEAVE:
                raise
            except BaseException:
                with suppress(StorageError):  # what the work met is told, not this
                    attempts.end(self.output, name, number)  # it failed, it did not die
                raise
            with suppress(StorageError):  # the work is done; the next run tidies up
                attempts.end(self.output, name, number)
            return result
        except attempts.GivenUp as error:
            return self.fail(unit, f"{error} in the {step} step; see Ray's logs")
        except _LEAVE:
            raise
        except BaseException as error:  # noqa: BLE001  the unit fails with its reason, the others go on
            return self.fail(unit, in_words(error))

    def commit(self, unit: Unit, judged: Callable[[], Judged]) -> Outcome:
        """Decides and writes a unit; also behind a marker, since thumbnails are decoded here."""

        job = self.job

        def work() -> Outcome:
            if job.missing is not None:
                return Outcome(unit.unit_id, commit_scores(job.profile, job.prints, judged(), self.output))
            manifest = commit(job.profile, job.prints, judged(), self.output, shards=job.shards)
            with suppress(StorageError):  # it is committed; the next run tidies up
                self.output.delete(f"failed/{unit.short}.json")
            return Outcome(unit.unit_id, manifest["listed"], manifest["seen"], manifest["kept"])

        return self.attempt(unit, "commit", work)

    def fail(self, unit: Unit, error: str) -> Outcome:
        if self.job.missing is not None:  # the unit is committed: nothing of the run has failed
            return Outcome(unit.unit_id, error=error)
        try:
            record_failure(self.output, unit, error)
        except Exception as second:  # noqa: BLE001  the disk is full, say: the driver tells both
            error = f"{error}; and not recorded under failed/: {describe(second)}"
        return Outcome(unit.unit_id, error=error)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _living_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _outcome(outcome: Outcome) -> pa.Table:
    return pa.table({"outcome": [json.dumps(outcome.__dict__)]})


def _status(filters: Mapping[str, Filter], outcome: Outcome) -> pa.Table:
    """A status row in the clothes of a sample: Ray Data wants one schema from an operator."""
    fields = [field for field in ledger.schema(filters) if field.name not in ledger.VERDICT.names]
    nulls = pa.Table.from_arrays([pa.nulls(1, field.type) for field in fields], schema=pa.schema(fields))
    return with_state(
        Judged(Unit(outcome.unit_id, "", 0), nulls, pa.nulls(1, pa.string()), [None]), {"outcome": outcome.__dict__}
    )
