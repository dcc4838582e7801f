"""Sides of a comparison, run in turn, and the file that a comparison leaves for docs/benchmarks.md.

The one decision: sides take turns, so that whatever else the machine does meets all of them alike, and what counts is
CPU seconds without the start-up, which a run of the same side on next to no input measures in every turn: what
start-ups differ by is in a ratio's spread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError, Cost, Ratio, counted_by, measure, say

ROOT = Path(__file__).parents[1]
WORK = ROOT / "data/benchmarks"
# Of a side that starts Ray: a local one would turn token authentication on for this machine and for good, and a user's
# cluster would do the work for nothing.
RAY_ENV = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}


def folder_name(name: str) -> str:
    """A side's or an input's name, for a folder."""
    return name.replace(",", "").replace(" ", "-")


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Side:
    """One way to do the work: a command on all samples, and the same command on next to none (its start-up).

    Commands write nothing that a later run would find. The last line they print may be JSON: what they decided.
    """

    name: str
    full: Sequence[str]
    small: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    # Before every run, not measured: takes away what the last one wrote.
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Measured:
    """A side's figures, turn by turn: the small command's and the full one's. Raises `BenchmarkError` without work."""

    name: str
    samples: int
    starts: tuple[Cost, ...]
    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        if any(cost.cpu <= start.cpu for start, cost in zip(self.starts, self.costs, strict=True)):
            raise BenchmarkError(f"{self.name}: no more CPU than its start-up: {self.samples} samples are too few")

    @property
    def start(self) -> float:
        """CPU seconds of the start-up."""
        return statistics.median(cost.cpu for cost in self.starts)

    @property
    def start_wall(self) -> float:
        return statistics.median(cost.wall for cost in self.starts)

    @property
    def rates(self) -> list[float]:
        """Samples a CPU-second without the start-up, turn by turn."""
        return [self.samples / (cost.cpu - start.cpu) for start, cost in zip(self.starts, self.costs, strict=True)]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def told(self) -> Any:
        """What the last run printed as JSON in its last line; None where it printed none."""
        lines = self.costs[-1].output.strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith(("{", "[")) else None

    def over(self, other: Measured) -> Ratio:
        """This side's rate over another's, pair by pair."""
        return Ratio(tuple(ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True)))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "samples": self.samples,
            "per_cpu_second": self.rate,
            "per_cpu_second_runs": self.rates,
            "per_second": self.samples / statistics.median(cost.wall - self.start_wall for cost in self.costs),
            "start_cpu_seconds": self.start,
            "start_cpu_seconds_runs": [cost.cpu for cost in self.starts],
            "start_seconds": self.start_wall,
            "memory_bytes": max(cost.memory for cost in self.costs),
        }


def in_turn(sides: Sequence[Side], samples: int | Mapping[str, int], pairs: int) -> dict[str, Measured]:
    """Runs every side `pairs` times, one after the other, and says each figure as it comes. By name of the side.

    samples: of every side, or by name.
    """
    starts: dict[str, list[Cost]] = {side.name: [] for side in sides}
    costs: dict[str, list[Cost]] = {side.name: [] for side in sides}
    for side in sides:
        _run(side, side.small)  # files are read and compiled, whatever comes first
    for turn in range(pairs):
        for side in sides if turn % 2 == 0 else reversed(sides):
            starts[side.name].append(_run(side, side.small))
            cost = _run(side, side.full)
            costs[side.name].append(cost)
            said = f"{cost.cpu:.1f} CPU-seconds, {cost.wall:.1f} s"
            say(f"  {turn + 1}/{pairs} {side.name}: {said}, of which {starts[side.name][-1].cpu:.1f} start it")
    return {
        side.name: Measured(
            side.name,
            samples if isinstance(samples, int) else samples[side.name],
            tuple(starts[side.name]),
            tuple(costs[side.name]),
        )
        for side in sides
    }


def _run(side: Side, command: Sequence[str]) -> Cost:
    if side.before is not None:
        side.before()
    return measure(command, env=side.env)


def cached(*folders: Path) -> None:
    """Reads all files below folders, so that every side finds its input in the page cache."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 22):
                        pass


def by_turns(ways: Mapping[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """CPU seconds of this process for each of several functions, called in turn `pairs` times, after one call each."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(pairs):
        for name in ways if turn % 2 == 0 else reversed(list(ways)):
            began = time.process_time()
            ways[name]()
            seconds[name].append(time.process_time() - began)
    return seconds


def ratio(fewer: Sequence[float], more: Sequence[float]) -> Ratio:
    """How many times `more` the second costs, pair by pair."""
    return Ratio(tuple(theirs / ours for ours, theirs in zip(fewer, more, strict=True)))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every comparison takes."""
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="runs of each side; default: %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="inputs and outputs; default: data/")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also writes the figures there, for benchmarks.page (docs)"
    )


def write_json(path: Path | None, figures: Mapping[str, Any], packages: Sequence[str] = ()) -> None:
    """Figures with what they were measured on. packages: whose versions of this environment matter."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    path.write_text(json.dumps({**about, **figures}, indent=1) + "\n")


def run_command(
    parser: argparse.ArgumentParser,
    compare: Callable[[argparse.Namespace], Mapping[str, Any]],
    packages: Sequence[str],
    mistakes: tuple[type[Exception], ...] = (),
) -> int:
    """A benchmark's `main`: compares, and writes the figures for --json; what goes wrong is one line, and status 1.

    mistakes: further exceptions that are a user's.
    """
    options = parser.parse_args()
    try:
        if options.json is not None and not _can_be_written(options.json):
            raise BenchmarkError(f"--json: {options.json} is no file that can be written")
        write_json(options.json, compare(options), packages)
    except (BenchmarkError, ImportError, OSError, *mistakes) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _can_be_written(file: Path) -> bool:
    if file.exists():
        return not file.is_dir() and os.access(file, os.W_OK)
    folder = next(path for path in file.absolute().parents if path.exists())
    return folder.is_dir() and os.access(folder, os.W_OK)


def machine() -> dict[str, Any]:
    """What it ran on, as far as figures depend on it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "counted_by": counted_by(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }
