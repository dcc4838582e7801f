"""The runs and decisions that the page shows: found below the folders it was given, opened, and followed.

The one decision: what the page shows of a run is a `Shown` of the report, made of the same sums of unit manifests, so
page, report and `stats` cannot differ. A run that cannot be read is listed with the one line that says why.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from curation import lease, manifests
from curation.dashboard.counting import Counting
from curation.dashboard.near import Near
from curation.dashboard.pictures import Pictures
from curation.dashboard.whatif import Rules, rules_of
from curation.following import Following
from curation.manifests import FOLDER, ManifestError, Summary
from curation.metrics import Rates
from curation.opened import DECIDED, DECISION, DECISIONS, Opened, open_run
from curation.plan import RunError
from curation.report.data import Shown, gather
from curation.unit import describe
from shards.manifest import NAME
from shards.manifest import ManifestError as DatasetManifestError
from shards.storage import NotFound, Storage, StorageError

# A look at a run is good for so long, and so is the list of runs, seconds.
LOOK_S, FIND_S = 1.0, 5.0
# What a folder's state may be told by.
Failure = (RunError, ManifestError, DatasetManifestError, StorageError)
# What a JSON file may raise that is none of ours, where it is read or shown.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
# Runs whose rows and pictures are remembered.
_REMEMBERED = 4

Made = TypeVar("Made")


@dataclass(frozen=True)
class Look:
    """A run at a moment. `version`: another one whenever anything else differs.

    `units`: ids of the committed ones, sorted. rate: samples/s and units/s committed in the last minute, while a driver
    is at work.
    """

    shown: Shown
    units: tuple[str, ...]
    at_work: bool
    version: str
    rate: dict[str, float]

    @property
    def opened(self) -> Opened:
        return self.shown.opened


class Run:
    """One run or decision. `base`: the run that a decision belongs to."""

    def __init__(self, output: Storage, name: str, base: Run | None = None) -> None:
        self.output, self.base, self.name = output, base, name
        said = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:60] or "run"
        self.id = f"{said}-{hashlib.sha256(output.uri.encode()).hexdigest()[:10]}"
        self._lock = threading.Lock()
        self._look: Look | None = None
        self._looked = 0.0
        self._state: tuple[object, object, object] | None = None  # all that a look depends on besides the sums
        self._summary: Summary | None = None
        self._following: Following | None = None
        self._owner: tuple[lease.Owner, float] | None = None
        self._number = self._opened_as = 0
        self._made: dict[str, tuple[object, Any]] = {}
        self._making = threading.RLock()
        self._rates = Rates()

    def look(self) -> Look:
        """The run as it is now. Raises `RunError`, `ManifestError`, `StorageError` with one line."""
        with self._lock:
            if self._look is None or time.monotonic() - self._looked > LOOK_S:
                try:
                    self._look = self._now()
                except DAMAGE as error:
                    raise RunError(
                        f"{self.output.uri}: run.json or a file of its sessions is damaged ({describe(error)})"
                    ) from error
                self._looked = time.monotonic()
            return self._look

    def _now(self) -> Look:
        output = self.output
        marks = tuple(_mark(output, path) for path in ("run.json", NAME, DECISION))
        at_work = self._at_work()
        if self._look is None or self._state is None or self._state[0] != marks or (self._state[1] and not at_work):
            opened = open_run(output.uri)
            if self._look is None or self._look.opened.decision != opened.decision:
                self._following = Following(output, opened.decision, DECIDED if opened.is_decision else FOLDER)
                self._opened_as += 1
        else:
            opened = self._look.opened
        assert self._following is not None
        summary = self._following.summary()
        beside = tuple(tuple(output.list(folder, ".json")) for folder in ("sessions", "failed"))
        # While at work every 10 s too, for the rate.
        state = (marks, at_work and int(time.monotonic() / 10) + 1, beside)
        if self._look is not None and self._state == state and self._summary is summary:
            return self._look
        if at_work and (self._state is None or not self._state[1]):
            self._rates = Rates()  # what was before it began to work says nothing of its pace
        shown = gather(opened, summary.totals)
        self._state, self._summary = state, summary  # not before: what failed is tried again
        self._number += 1
        units = tuple(sorted(summary.shards))
        counts = {"samples": summary.totals.listed, "units": summary.totals.units}
        rate = self._rates.add(time.monotonic(), counts) if at_work else {}
        version = f"{self._number}-{int(time.time())}"
        return Look(shown, units, at_work, version, rate)

    def forget(self) -> None:
        """Lets go of rows and pictures."""
        self._made.clear()

    def _once(self, name: str, make: Callable[[], Made]) -> Made:
        """What was made before, unless units were made again since, here or in the run that this is a decision of."""
        runs = [self] if self.base is None else [self, self.base]
        for run in runs:
            run.look()
        stamp = tuple((run._opened_as, run._following.sums if run._following else 0) for run in runs)
        with self._making:
            if name not in self._made or self._made[name][0] != stamp:
                self._made[name] = (stamp, make())
            made: Made = self._made[name][1]
            return made

    def _at_work(self) -> bool:
        """Whether a driver holds the folder. One on another machine is believed while it renews its lease."""
        owner = lease.read(self.output)
        if owner is None:
            return False
        if owner.machine == lease.this_machine():
            return owner.lives() and time.monotonic() - owner.uptime < lease.STALE_S
        if self._owner is None or self._owner[0] != owner:
            self._owner = (owner, time.monotonic())
        return time.monotonic() - self._owner[1] < lease.STALE_S

    def changes(self) -> list[str]:
        """By what a decision differs from its run, as `rescore` said it; empty while it is being made."""
        try:
            return [str(change) for change in manifests.read_json(self.output, DECISION, ("changes",))["changes"]]
        except (NotFound, ManifestError, TypeError):
            return []

    @property
    def rules(self) -> Rules:
        return self._once("rules", lambda: rules_of(self.look().opened.record))

    @property
    def pictures(self) -> Pictures:
        def make() -> Pictures:
            look = self.look()
            own = self.base is None or any(look.opened.output.list("shards", ".tar"))
            return Pictures(look.opened) if own or self.base is None else self.base.pictures

        return self._once("pictures", make)

    @property
    def near(self) -> Near:
        return self._once("near", lambda: Near(self.look().opened, self.pictures))

    @property
    def counting(self) -> Counting:
        return self._once("counting", lambda: Counting(self.look().opened, self.rules))


def _mark(output: Storage, path: str) -> tuple[int, int | None] | None:
    info = output.info(path)
    return (info.size, info.mtime_ns) if info.is_file else None


class Runs:
    """Everything below the folders: each one is a run, or holds runs."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._roots = [Storage.open(folder) for folder in folders]
        self._lock = threading.Lock()
        self._found: dict[str, Run] = {}
        self._by_uri: dict[str, Run] = {}
        self._looked = 0.0
        self._used: list[Run] = []

    def use(self, run_id: str) -> Run | None:
        """A run by its id. Of those that were asked for longest ago, rows and pictures are let go."""
        run = self.all().get(run_id)
        if run is not None:
            with self._lock:
                keep = [run, *([run.base] if run.base is not None else [])]
                self._used = keep + [other for other in self._used if other not in keep]
                gone, self._used = self._used[_REMEMBERED:], self._used[:_REMEMBERED]
            for other in gone:
                other.forget()
        return run

    def all(self) -> dict[str, Run]:
        """Runs and decisions by id, a run before its decisions. Raises `StorageError`."""
        with self._lock:
            if not self._found or time.monotonic() - self._looked > FIND_S:
                self._found = {run.id: run for root in self._roots for run in self._below(root)}
                self._looked = time.monotonic()
            return self._found

    def _below(self, root: Storage) -> list[Run]:
        root.must_answer()
        if root.exists("run.json"):
            return self._with_decisions(root)
        folders = [Storage.open(root.where(name)) for name in root.folders()]
        return [run for folder in folders if folder.exists("run.json") for run in self._with_decisions(folder)]

    def _with_decisions(self, folder: Storage) -> list[Run]:
        later = folder.parent().uri.endswith(f"/{DECISIONS}")
        above = self._run(folder.parent().parent(), None) if later else None
        run = self._run(folder, above)
        names = [] if later else folder.folders(DECISIONS)
        found = [Storage.open(folder.where(f"{DECISIONS}/{name}")) for name in names]
        return [run, *(self._run(decision, run) for decision in found if decision.exists("run.json"))]

    def _run(self, output: Storage, base: Run | None) -> Run:
        uri = output.uri.rstrip("/")
        if uri not in self._by_uri:
            name = uri.rpartition("/")[2][:12] if base is not None else uri.rpartition("/")[2]
            self._by_uri[uri] = Run(output, f"{base.name}-{name}" if base is not None else name, base)
        return self._by_uri[uri]
