"""A run's live numbers for Prometheus, through Ray's own export (docs/dashboards.md).

The one decision: samples are counted by the driver from committed manifests, so every number is the one that `stats`
gives, after any crash and resume. A task that Ray may run twice tells how long its work took, never how many samples.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from curation import stats
from curation.following import Following
from curation.plan import Plan
from curation.progress import say
from curation.stats import Totals
from curation.unit import in_words

# Seconds between two looks. Ray forgets a gauge that was not set again for 20 s, and exports every 10 s.
EVERY_S = 5.0
# How long the end of a run waits for the last look, seconds: storage that is lost must not hold it up. And a run that
# was stopped, which has 30 s where a cluster stops it.
LAST_S, LAST_STOPPED_S = 10.0, 2.0
# Rates and the share of busy time are over so many seconds.
WINDOW_S = 60.0
# Seconds a batch: from a GPU's 256 small images to a CPU's 32 through a large model.
BATCH_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# Gauges: name -> (labels besides `profile`, what it is). Ray puts `ray_` before every name.
GAUGES: dict[str, tuple[tuple[str, ...], str]] = {
    "winnow_run_active": ((), "1 while a driver is at work, 0 once it has ended"),
    "winnow_last_commit_timestamp_seconds": ((), "when the driver last saw a new commit; at first, when it began"),
    "winnow_units": (("state",), "units of the input: committed, failed, pending, beyond_limit; together all of them"),
    "winnow_samples_listed": ((), "samples of committed units"),
    "winnow_samples_seen": ((), "samples of committed units whose image was there to be judged"),
    "winnow_samples": (("outcome",), "samples of committed units by what became of them; together those listed"),
    "winnow_filter_scored": (("filter",), "samples with a score of this filter"),
    "winnow_filter_dropped_first": (("filter",), "samples that this filter was the first to drop, errors among them"),
    "winnow_filter_failed": (("filter",), "samples that fail this filter, whichever dropped them"),
    "winnow_filter_failed_alone": (("filter",), "samples that fail this filter and no other"),
    "winnow_filter_errors": (("filter",), "samples dropped since this filter could not score them"),
    "winnow_retention": ((), "kept / seen; absent until something was seen"),
    "winnow_target_retention": ((), "the profile's target_retention; absent where it has none"),
    "winnow_samples_per_second": (
        ("stage",),
        "samples of the units committed in the last minute, by how far they came",
    ),
    "winnow_worker_seconds": (("step",), "worker seconds of committed units"),
}
BATCHES = ("winnow_clip_batch_seconds", "seconds of one batch in the model of a filter that looks at pixels")
BUSY = ("winnow_clip_busy_share", "share of the last minute that an actor's model was at work, as of its last batch")

# One number: name, its labels besides `profile`, value.
Number = tuple[str, dict[str, str], float]


def numbers(totals: Totals, filters: list[str]) -> Iterator[Number]:
    """What the sums of committed manifests say. filters: labels in the order of execution."""
    funnel = stats.funnel(totals, filters)
    yield "winnow_samples_listed", {}, totals.listed
    yield "winnow_samples_seen", {}, totals.seen
    outcomes = {
        "not_fetched": sum(totals.fetch.values()),
        "unreadable": sum(totals.unreadable.values()),
        "mapper_dropped": sum(funnel["mappers"].values()),
        "filter_dropped": sum(filter_["dropped_first"] for filter_ in funnel["filters"].values()),
        "kept": totals.kept,
    }
    yield from (("winnow_samples", {"outcome": outcome}, number) for outcome, number in outcomes.items())
    for label, found in funnel["filters"].items():
        yield from ((f"winnow_filter_{what}", {"filter": label}, number) for what, number in found.items())
    if totals.retention is not None:
        yield "winnow_retention", {}, totals.retention
    yield from (("winnow_worker_seconds", {"step": step}, value) for step, value in totals.seconds.items())


def passed(totals: Totals, filters: list[str], pixel: str | None) -> dict[str, int]:
    """Samples of committed units by stage. pixel: the first filter that looks at pixels.

    read: listed in the input. judged: readable, with a caption, seen by the filters. pixels: scored. kept: written.
    """
    dropped = sum(totals.reasons.get(label, 0) + totals.reasons.get(f"{label}:error", 0) for label in filters)
    scored = {} if pixel is None else {"pixels": totals.scored.get(pixel, 0)}
    return {"read": totals.listed, "judged": totals.kept + dropped, **scored, "kept": totals.kept}


class Rates:
    """Samples a second by stage, over the last minute of looks at running counts."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, int]]] = deque()

    def add(self, now: float, counts: dict[str, int]) -> dict[str, float]:
        """One more look, at `now` seconds of any clock. What was committed before the first look counts for nothing."""
        if self._looks and any(count < self._looks[-1][1].get(stage, 0) for stage, count in counts.items()):
            self._looks.clear()  # units were taken back, to be made again
        self._looks.append((now, counts))
        while len(self._looks) > 2 and self._looks[1][0] <= now - WINDOW_S:
            self._looks.popleft()
        since, before = self._looks[0]
        return {
            stage: (count - before[stage]) / (now - since) if now > since else 0.0 for stage, count in counts.items()
        }


class Live:
    """Shows a run's numbers within a `with` block, from a thread of its own: the run neither waits for it nor fails."""

    def __init__(self, plan: Plan) -> None:
        profile = plan.profile
        self._name, self._target = profile.name, profile.target_retention
        self._filters, self._pixel = list(profile.filters), next(iter(profile.pixel), None)
        self._output = plan.output
        self._following = Following(plan.output, plan.prints.decision)
        self._input = {unit.unit_id for unit in plan.units}
        self._asked = {unit.unit_id for unit in plan.units[: plan.first]}
        self._rates = Rates()
        self._gauges: dict[str, Any] = {}
        self._committed = -1
        self._last_commit = time.time()
        self._told = False
        self._over = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._watch, name="live metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(LAST_S if kind is None else LAST_STOPPED_S)
        self._given_up = True  # Ray may be gone by the time that a look ends which is still at work

    def _watch(self) -> None:
        over = False
        while True:
            try:
                self._look(not over)
            except Exception as error:  # noqa: BLE001  told once, whatever it is: numbers on a page are not worth a run
                if not self._told and not self._given_up:
                    self._told = True
                    say(f"note: live metrics: {in_words(error)}; the run goes on, and they are tried again")
            if over:
                return
            over = self._over.wait(EVERY_S)

    def _look(self, active: bool) -> None:
        self._set([("winnow_run_active", {}, float(active))])  # first: also where manifests cannot be read
        summary = self._following.summary()
        totals, committed = summary.totals, summary.shards.keys() & self._input
        if self._committed not in (-1, totals.units):
            self._last_commit = time.time()
        self._committed = totals.units
        short = {entry.path.removeprefix("failed/").removesuffix(".json") for entry in self._output.list("failed")}
        failed = {unit for unit in self._input - committed if unit[:12] in short} if short else set()
        pending = len(self._asked - committed - failed)
        states = {"committed": len(committed), "failed": len(failed), "pending": pending}
        states["beyond_limit"] = len(self._input) - sum(states.values())
        rates = self._rates.add(time.monotonic(), passed(totals, self._filters, self._pixel))
        self._set(
            [
                *numbers(totals, self._filters),
                *(("winnow_units", {"state": state}, number) for state, number in states.items()),
                *(("winnow_samples_per_second", {"stage": stage}, rate) for stage, rate in rates.items()),
                ("winnow_last_commit_timestamp_seconds", {}, self._last_commit),
                *([] if self._target is None else [("winnow_target_retention", {}, self._target)]),
            ]
        )

    def _set(self, found: list[Number]) -> None:
        from ray.util.metrics import Gauge

        for name, labels, value in found:
            if self._given_up:
                return
            if name not in self._gauges:
                keys, description = GAUGES[name]
                self._gauges[name] = Gauge(name, description, ("profile", *keys))
            self._gauges[name].set(float(value), {"profile": self._name, **labels})


@runtime_checkable
class Batched(Protocol):
    """A scorer that tells of each batch how many seconds its model took."""

    on_batch: Callable[[float], None]


def watch_batches(profile: str, scorers: Mapping[str, object]) -> None:
    """Has the models of a pixel actor tell Prometheus how long their batches take. scorers: by label."""
    for label, scorer in scorers.items():
        if isinstance(scorer, Batched):
            scorer.on_batch = Batches(profile, label)


class Batches:
    """How long a model's batches take, and how much of its time that is. Never fails: the scores are what counts."""

    def __init__(self, profile: str, label: str) -> None:
        self._labels = {"profile": profile, "filter": label}
        self._began = time.monotonic()
        self._latest: deque[tuple[float, float]] = deque()  # end and seconds of the batches in the window
        self._metrics: tuple[Any, Any] | None = None
        self._works = True

    def __call__(self, seconds: float) -> None:
        """A batch that has just ended."""
        if not self._works:
            return
        share = self.share(time.monotonic(), seconds)
        try:
            if self._metrics is None:
                from ray.util.metrics import Gauge, Histogram

                keys = tuple(self._labels)
                self._metrics = Histogram(*BATCHES, list(BATCH_S), keys), Gauge(*BUSY, keys)
            batches, busy = self._metrics
            batches.observe(seconds, self._labels)
            busy.set(share, self._labels)
        except Exception:  # an actor has nobody to tell but Ray's log
            self._works = False
            logging.getLogger(__name__).exception("no metrics of batches from this actor any more")

    def share(self, now: float, seconds: float) -> float:
        """The share of the last minute, or since the start, in which the model was at work. A batch ended at `now`."""
        self._latest.append((now, seconds))
        since = max(self._began, now - WINDOW_S)
        while self._latest and self._latest[0][0] <= since:
            self._latest.popleft()
        worked = sum(end - max(since, end - took) for end, took in self._latest)
        return min(1.0, worked / (now - since)) if now > since else 1.0
