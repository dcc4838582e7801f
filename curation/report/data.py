"""What a report shows of a run or a decision, as numbers: sums of unit manifests, and small files beside them.

The one decision: everything here has a bound that does not grow with the run, so the page has one too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from curation import ledger, manifests, stats
from curation.opened import Opened
from curation.report import charts
from curation.stats import Totals
from shards import manifest

# What is listed of things that a run may have any number of.
WARNINGS, FAILED, ROWS, CHARTS, MATRIX = 40, 40, 60, 60, 30


@dataclass(frozen=True)
class Stage:
    """A line of the funnel. kind: count, dropped or kept."""

    name: str
    kind: str
    dropped: int
    left: int


@dataclass(frozen=True)
class Shown:
    """Numbers of one run or decision. `failed`: the first failed units; `failed_count`: all."""

    opened: Opened
    totals: Totals
    sessions: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    failed_count: int = 0
    written: float | None = None  # when run.json was, seconds since 1970
    shard_bytes: int = 0

    @property
    def record(self) -> dict[str, Any]:
        return self.opened.record

    @property
    def labels(self) -> list[str]:
        return self.opened.labels

    @property
    def funnel(self) -> dict[str, Any]:
        return stats.funnel(self.totals, self.labels)

    @property
    def target(self) -> float | None:
        found = self.record["profile"].get("target_retention")
        return None if found is None else float(found)

    @property
    def planned(self) -> int | None:
        """Units of the input."""
        found = self.record["input"].get("units")
        return None if found is None else int(found)

    @property
    def wall(self) -> float:
        """Seconds of all sessions."""
        return float(sum(session["seconds"] for session in self.sessions))

    @property
    def rate(self) -> float | None:
        """Listed samples a second of wall time."""
        return self.totals.listed / self.wall if self.wall else None

    @property
    def dates(self) -> str:
        """When it was made, in UTC."""
        begun = [float(session["started"]) for session in self.sessions if "started" in session]
        if not begun:
            return "not recorded" if self.written is None else f"run.json was written on {moment(self.written)}"
        ended = max(float(s["started"]) + s["seconds"] for s in self.sessions if "started" in s)
        return f"{moment(min(begun))} to {moment(ended)}, {count(len(self.sessions), 'session')}"


def gather(opened: Opened, totals: Totals | None = None) -> Shown:
    """The numbers of a run or decision. totals: its sums, if at hand. Raises `ManifestError`, `StorageError`."""
    output = opened.output
    sessions = [manifests.read_json(output, entry.path, ("seconds",)) for entry in output.list("sessions", ".json")]
    failures = output.list("failed", ".json")
    failed = [manifests.read_json(output, entry.path, ("input", "error")) for entry in failures[:FAILED]]
    written = output.info("run.json").mtime_ns
    totals = opened.totals() if totals is None else totals
    if totals.units < opened.record["input"].get("units", 0):  # manifests that went after the end was written
        opened = replace(opened, complete=False)
    # What decided a decision's units knows nothing of the shards that `select` wrote later.
    selected = opened.is_decision and output.exists(manifest.NAME)
    shard_bytes = manifest.read_manifest(output).bytes if selected else totals.shard_bytes
    return Shown(opened, totals, sessions, failed, len(failures), written and written / 1e9, shard_bytes)


def stages(shown: Shown) -> list[Stage]:
    """The funnel from the list down to what was kept, in the order of execution."""
    totals, funnel = shown.totals, shown.funnel
    found, left = [], totals.listed

    def drop(name: str, dropped: int) -> None:
        nonlocal left
        left -= dropped
        found.append(Stage(name, "dropped", dropped, left))

    if totals.fetch:
        found.append(Stage("listed", "count", 0, left))
        drop("not fetched", sum(totals.fetch.values()))
    found.append(Stage("seen", "count", 0, left))
    drop("unreadable", sum(totals.unreadable.values()))
    for name, dropped in funnel["mappers"].items():
        drop(name, dropped)
    for label, numbers in funnel["filters"].items():
        drop(label, numbers["dropped_first"])
    found.append(Stage("kept", "kept", 0, totals.kept))
    return found


def together(totals: Totals, one: str, other: str) -> int:
    """Samples that failed both filters; with itself: that failed it."""
    if one == other:
        return totals.failed.get(one, 0)
    pairs = totals.failed_together
    return pairs.get(f"{one}+{other}", 0) + pairs.get(f"{other}+{one}", 0)


def histograms(shown: Shown) -> tuple[list[charts.Histogram], list[str]]:
    """What is drawn, filter by filter, and the labels of filters of which nothing can be."""
    drawn: list[charts.Histogram] = []
    without = []
    for label in shown.labels:
        counted = histograms_of(shown, label)
        settings = shown.record["thresholds"].get(label) or {}
        found = [
            charts.histogram(
                f"{label} · {score}", counts, charts.thresholds_of(score, list(counted), _settings(settings))
            )
            for score, counts in counted.items()
        ]
        drawn += [chart for chart in found if chart is not None]
        if not any(found):
            without.append(label)
    return drawn, without


def histograms_of(shown: Shown, label: str) -> dict[str, dict[str, Any]]:
    """A filter's histograms by score."""
    counted = shown.totals.histograms
    return {score: counted[name] for name, score in ledger.own_scores(counted, label, shown.labels).items()}


def _settings(settings: Any) -> Mapping[str, Any]:
    return settings if isinstance(settings, Mapping) else {}


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def share(part: float, whole: float) -> float:
    """part / whole; 0 of nothing."""
    return part / whole if whole else 0.0
