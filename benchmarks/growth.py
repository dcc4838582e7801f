"""Cost grows with work: CPU time a sample and peak memory of the whole job on Ray, from 10,000 samples to 200,000.

Every size is run in turn; its time a sample is what is left when the start-up is taken off (benchmarks.job tells how it
is measured), its peak memory that of all processes of the job, Ray's own among them (PSS, looked at ten times a
second; mapped input files count as long as they are mapped). Large inputs are hard links to the tars of a smaller one
under other names: units and keys depend on the name, so every sample is new work, though files are warm. Units are of
1,000 samples, so that the smallest input has enough of them for every worker that Ray starts; --unit 5000, a tar each,
is what a profile's defaults make of these tars.

Then inputs that nobody would choose, against units of ordinary samples:
  long captions   1 MB each: told apart as too long (the default), or judged like any other (max_caption_chars raised)
  tiny samples    one tar of 100,000 with images of some 100 bytes, which planning cuts into units
  huge images     50 JPEGs of 8000 x 6000; 50 of 12000 x 8000, which are above max_pixels and refused by their headers
None may fail a unit; what they take is told by sample and by MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.corpus import SAMPLES_A_TAR, write_corpus
from benchmarks.job import clear, ray_job, ready, write_profile, write_start
from benchmarks.measure import BenchmarkError, Cost, Ratio, measure, say
from benchmarks.odd_inputs import odd_inputs
from benchmarks.shown import bars, table
from benchmarks.sides import RAY_ENV, add_options, cores, run_command

SIZES = (10_000, 50_000, 200_000)
# Distinct tars of the largest input; the others are links.
DISTINCT = 50_000
UNIT = 1_000
# Start-ups in each turn.
STARTS = 3
# Below so many samples the start-up is more than the work.
SHORT = 50_000
# The largest over the smallest: time a sample, and peak memory.
TIME, MEMORY = 1.15, 1.10


@dataclass(frozen=True)
class Input:
    """A folder of tars. settings: of its profile. times: runs in each turn, more where a run is short."""

    name: str
    tars: Path
    samples: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.tars.glob("*.tar"))


@dataclass(frozen=True)
class Ran:
    """Runs of one input, turn by turn; all start-ups; and what the last run told of its samples."""

    input: Input
    starts: tuple[Cost, ...]
    turns: tuple[tuple[Cost, ...], ...]
    told: dict[str, int]

    @property
    def start(self) -> float:
        """CPU seconds of a start-up."""
        return statistics.median(cost.cpu for cost in self.starts)

    @property
    def noise(self) -> float:
        """CPU seconds by which start-ups differ: less than that cannot be told from nothing."""
        return max(cost.cpu for cost in self.starts) - min(cost.cpu for cost in self.starts)

    @property
    def cpu(self) -> list[float]:
        """CPU seconds with the start-up, by turn."""
        return [statistics.median(cost.cpu for cost in turn) for turn in self.turns]

    @property
    def each(self) -> list[float]:
        """CPU microseconds a sample without the start-up, by turn."""
        return [1e6 * (cpu - self.start) / self.input.samples for cpu in self.cpu]

    @property
    def wall(self) -> float:
        return statistics.median(cost.wall for turn in self.turns for cost in turn)

    @property
    def memory(self) -> list[float]:
        """Its highest in GiB, by turn; of several runs the middle one, as large inputs have one alone."""
        return [statistics.median(cost.memory for cost in turn) / 2**30 for turn in self.turns]

    def over(self, other: Ran) -> tuple[Ratio, Ratio]:
        """Time a sample and peak memory as multiples of another's, turn by turn."""
        times = zip(self.each, other.each, strict=True)
        peaks = zip(self.memory, other.memory, strict=True)
        return Ratio(tuple(one / two for one, two in times)), Ratio(tuple(one / two for one, two in peaks))

    def further(self, smaller: Ran) -> float:
        """CPU microseconds of each sample that a smaller input has not: whatever the start-up was."""
        more = (one - two for one, two in zip(self.cpu, smaller.cpu, strict=True))
        return 1e6 * statistics.median(more) / (self.input.samples - smaller.input.samples)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.input.name,
            "samples": self.input.samples,
            "bytes": self.input.bytes,
            "cpu_seconds": [[cost.cpu for cost in turn] for turn in self.turns],
            "us_a_sample": self.each,
            "wall_seconds": self.wall,
            "memory_gib": self.memory,
            **self.told,
        }


def linked(folder: Path, tars: Sequence[Path], samples: int, unit: int) -> Input:
    """An input of so many samples, in units of `unit`: links to whole tars, over and over."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(samples // SAMPLES_A_TAR):
        os.link(tars[number % len(tars)], folder / f"{number:05d}.tar")
    settings = {"units": {"max_samples": unit}}
    return Input(f"{samples:,}", folder, samples, settings, times=3 if samples < SHORT else 1)


def run_in_turn(home: Path, inputs: Sequence[Input], turns: int) -> list[Ran]:
    """Every input in turn, `turns` times, each time behind some start-ups."""
    start = write_start(home, inputs[0].tars)
    starts: list[Cost] = []
    costs: dict[str, list[tuple[Cost, ...]]] = {found.name: [] for found in inputs}
    told: dict[str, dict[str, int]] = {}
    for turn in range(turns):
        starts += [_once(home, inputs[0], start) for _ in range(STARTS)]
        for found in inputs if turn % 2 == 0 else reversed(inputs):
            here = []
            for _ in range(found.times):
                cost = _once(home, found, write_profile(home, found.tars, **found.settings))
                told[found.name] = _told(home)
                clear(home)
                here.append(cost)
                said = f"{cost.cpu:.1f} CPU-seconds, {cost.wall:.1f} s, {cost.memory / 2**30:.2f} GiB"
                say(f"  {turn + 1}/{turns} {found.name}: {said}")
            if told[found.name]["listed"] != found.samples:
                raise BenchmarkError(f"{found.name}: {told[found.name]['listed']:,} of {found.samples:,} samples seen")
            costs[found.name].append(tuple(here))
    return [Ran(found, tuple(starts), tuple(costs[found.name]), told[found.name]) for found in inputs]


def _once(home: Path, found: Input, config: Path) -> Cost:
    ready(home, found.tars)
    return measure(ray_job(config), memory=True, env=RAY_ENV)


def _told(home: Path) -> dict[str, int]:
    manifests = [json.loads(path.read_text()) for path in (home / "runs/job/units").glob("*.json")]
    return {name: sum(manifest[name] for manifest in manifests) for name in ("listed", "kept")}


def growth(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sizes: table, bars and figures."""
    corpus = work / f"corpus-{min(max(options.sizes), DISTINCT)}-{options.images}"
    about = write_corpus(corpus, min(max(options.sizes), DISTINCT), options.images)
    tars = sorted(corpus.glob("[0-9]*.tar"))
    inputs = [linked(work / f"growth/in-{size}", tars, size, options.unit) for size in sorted(options.sizes)]
    found = run_in_turn(work / "growth", inputs, options.pairs)
    first, starts = found[0], found[0].starts
    start = ["start-up", "", f"{statistics.median(cost.wall for cost in starts):.1f}", "", "", ""]
    rows = [[*start, f"{statistics.median(cost.memory for cost in starts) / 2**30:.2f}", ""]]
    for before, ran in zip([first, *found], found, strict=False):
        time, memory = ran.over(first)
        more = ["", "", ""] if ran is first else [f"{ran.further(before):.0f}", str(time), str(memory)]
        units, peak = ran.input.samples // options.unit, f"{statistics.median(ran.memory):.2f}"
        each = f"{statistics.median(ran.each):.0f}"
        rows.append([ran.input.name, str(units), f"{ran.wall:.1f}", each, more[0], more[1], peak, more[2]])
    head = ["samples", "units", "seconds", "CPU-us a sample", "each further one", f"x the first, at most {TIME}"]
    shown = table(
        f"The whole job on {cores()} cores by the size of its input",
        [*head, "peak GiB", f"x the first, at most {MEMORY:.2f}"],
        rows,
    )
    names = [ran.input.name for ran in found]
    drawn = [
        bars("CPU time by size of the input", "us a sample", {ran.input.name: ran.each for ran in found}, names),
        bars("Peak memory by size of the input", "GiB", {ran.input.name: ran.memory for ran in found}, names),
    ]
    figures = {"corpus": about, "sizes": [ran.as_json() for ran in found], "start_cpu_seconds": first.start}
    return {"tables": [shown], "bars": drawn, **figures}


def odd(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Inputs out of the ordinary: table and figures."""
    corpus = work / f"corpus-{2 * SAMPLES_A_TAR}-{options.images}"
    write_corpus(corpus, 2 * SAMPLES_A_TAR, options.images)
    home = work / "growth"
    ordinary = linked(home / "ordinary", sorted(corpus.glob("[0-9]*.tar")), 2 * SAMPLES_A_TAR, options.unit)
    inputs = [replace(ordinary, name="ordinary", times=1), *(Input(*made) for made in odd_inputs(home))]
    found = run_in_turn(home, inputs, options.pairs)
    rows = []
    for ran in found:
        work_s, size = statistics.median(ran.cpu) - ran.start, ran.input.bytes
        below, seconds = ("< ", ran.noise) if work_s < ran.noise else ("", work_s)
        rows.append(
            [
                ran.input.name,
                f"{ran.input.samples:,}",
                f"{size / 1e6:,.0f}",
                f"{ran.told['kept']:,}",
                f"{below}{1e6 * seconds / ran.input.samples:,.0f}",
                f"{below}{1e9 * seconds / size:,.1f}",
                f"{statistics.median(ran.memory):.2f}",
                "" if ran is found[0] else str(ran.over(found[0])[1]),
            ]
        )
    head = ["input", "samples", "MB", "kept", "CPU-us a sample", "CPU-ms a MB", "peak GiB", "x ordinary"]
    return {"tables": [table("Inputs out of the ordinary", head, rows)], "odd": [ran.as_json() for ran in found]}


def everything(options: argparse.Namespace) -> dict[str, Any]:
    if options.pairs < 1 or options.images < 1:
        raise BenchmarkError("--pairs and --images are at least 1")
    if len(set(options.sizes)) < max(2, len(options.sizes)) or any(n < 1 or n % SAMPLES_A_TAR for n in options.sizes):
        raise BenchmarkError(f"--sizes: at least two, no two alike, multiples of {SAMPLES_A_TAR:,}")
    if options.unit < 1 or SAMPLES_A_TAR % options.unit:
        raise BenchmarkError(f"--unit: a divisor of {SAMPLES_A_TAR:,}, the samples of a tar")
    work = options.work.resolve()
    figures: dict[str, Any] = {"tables": [], "bars": []}
    try:
        for part in (growth, odd):
            if part.__name__ in options.parts:
                say(f"{part.__name__}:")
                made = part(work, options)
                figures["tables"] += made.pop("tables")
                figures["bars"] += made.pop("bars", [])
                figures |= made
    finally:
        shutil.rmtree(work / "growth", ignore_errors=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.growth --sizes 10000 50000 --pairs 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="samples; default: 10000 50000 200000"
    )
    parser.add_argument("--unit", type=int, default=UNIT, metavar="N", help="samples of a unit; default: %(default)s")
    parser.add_argument("--images", type=int, default=2_000, metavar="N", help="distinct ones; default: %(default)s")
    parser.add_argument(
        "--parts", nargs="+", choices=("growth", "odd"), default=["growth", "odd"], help="default: both"
    )
    add_options(parser)
    return run_command(parser, everything, ("ray", "pyarrow"))


if __name__ == "__main__":
    sys.exit(main())
