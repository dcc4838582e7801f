"""How long a command takes to begin: `--help`, `validate`, and `run` until its first unit is in work.

Seconds on the clock from the start of the process, files warm, sides in turn. When the first unit is in work tells a
filter of the profile, which leaves a file where it is first asked for a score: the unit has then been read. Beside it,
in the same order, what Ray alone takes: `ray.init` with the options of a run, its first task, and the first block of a
Ray Data job of one trivial step. Ray needs some 10 seconds and a GiB of memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from benchmarks.corpus import write_corpus
from benchmarks.measure import BenchmarkError, measure, say
from benchmarks.shown import bars, table
from benchmarks.sides import RAY_ENV, ROOT, add_options, run_command
from filters.base import Filter

SAMPLES, IMAGES = 1_000, 50
# Seconds, by what is measured.
TARGETS = {"--help": 0.3, "validate": 1.0, "run: first unit in work": 20.0}
CHEAP: dict[str, Any] = {"text_length": {}, "language": {}, "emoji": {}, "aspect_ratio": {}, "min_size": {}}

RAY_ALONE = """
import json, time
import ray
imported = time.time()
ray.init(address="local", include_dashboard=False, log_to_driver=False)
begun = time.time()

@ray.remote
def now():
    return time.time()

task = ray.get(now.remote())
import logging
import ray.data

def stamp(block):
    return {"at": [time.time()]}

ray.data.DataContext.get_current().enable_progress_bars = False
logging.getLogger("ray.data").setLevel(logging.CRITICAL)
rows = ray.data.from_items([{"a": 0}], override_num_blocks=1)
block = rows.map_batches(stamp, batch_size=None).take_all()[0]["at"]
print(json.dumps({"import ray": imported, "ray.init": begun, "first task": task, "first block of Ray Data": block}))
"""


class Touched(Filter):
    """Keeps everything; where it is first asked leaves a file with the packages that its worker has imported."""

    name = "touched"
    version = "1"
    file: str

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"seen": pa.bool_()}

    def score(self, samples: pa.Table) -> dict[str, pa.Array]:
        file = Path(self.file)
        if not file.exists():
            file.write_text(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
        return {"seen": pa.array([True] * len(samples), pa.bool_())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return pa.array([True] * len(scores), pa.bool_())


def write_profile(folder: Path, samples: int = SAMPLES, images: int = IMAGES) -> Path:
    """A configuration of one profile on one small tar, with all cheap filters behind the one that tells."""
    write_corpus(folder / "in", samples, images)
    first = {"filter": "benchmarks.startup:Touched", "file": str(folder / "touched")}
    profile = {
        "input": {"path": str(folder / "in"), "format": "webdataset"},
        "filters": {"first": first, **CHEAP},
        "output": {"path": str(folder / "runs")},
    }
    path = folder / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"startup": profile}}, sort_keys=False))
    return path


def shell(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "curation", *arguments]


def to_the_end(*command: str) -> Callable[[], dict[str, float]]:
    """Seconds of a command, under its name."""
    return lambda: {command[0]: measure(shell(*command), env=RAY_ENV).wall}


def run(folder: Path, config: Path) -> dict[str, float]:
    """Seconds until the plan is made, until the first unit is in work, until all is done."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    touched = folder / "touched"
    touched.unlink(missing_ok=True)
    began = time.time()
    cost = measure(shell("run", "--config", str(config)), env=RAY_ENV)
    if not touched.exists():
        raise BenchmarkError("the run came to no unit: it left no file")
    planned = folder / "runs/startup/run.json"
    return {
        "run: planned": planned.stat().st_mtime - began,
        "run: first unit in work": touched.stat().st_mtime - began,
        "run: done": cost.wall,
    }


def ray_alone(folder: Path) -> dict[str, float]:
    script = folder / "ray_alone.py"
    script.write_text(RAY_ALONE)
    began = time.time()
    told = json.loads(measure([sys.executable, str(script)], env=RAY_ENV).output.strip().splitlines()[-1])
    return {f"Ray alone: {what}": at - began for what, at in told.items()}


def in_turn(ways: Mapping[str, Callable[[], dict[str, float]]], runs: int) -> dict[str, list[float]]:
    """Seconds by what was measured, each way once before (files warm, bytecode written), then `runs` times."""
    found: dict[str, list[float]] = {}
    for turn in range(runs + 1):
        for name in ways if turn % 2 else reversed(list(ways)):
            seconds = ways[name]()
            if turn:
                said = ", ".join(f"{what} {value:.2f} s" for what, value in seconds.items())
                say(f"  {turn}/{runs} {said}")
                for what, value in seconds.items():
                    found.setdefault(what, []).append(value)
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    if options.pairs < 1:
        raise BenchmarkError("--pairs is at least 1")
    folder = options.work.resolve() / "startup"
    folder.mkdir(parents=True, exist_ok=True)
    config = write_profile(folder)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "python": lambda: {"python -c pass": measure([sys.executable, "-c", "pass"]).wall},
        "--help": to_the_end("--help"),
        "validate": to_the_end("validate", "--config", str(ROOT / "pipelines.yaml")),
        "run": lambda: run(folder, config),
        "ray": lambda: ray_alone(folder),
    }
    found = in_turn(ways, options.pairs)
    order = ["python -c pass", "--help", "validate", *(name for name in found if name.startswith("run"))]
    rows = []
    for name in [*order, *(name for name in found if name not in order)]:
        seconds, target = found[name], TARGETS.get(name)
        middle = statistics.median(seconds)
        held = "" if target is None else f"{target:g}: {'held' if middle < target else 'missed'}"
        rows.append([name, f"{middle:.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}", held])
    shown = table(f"Seconds from the shell, {options.pairs} runs", ["", "median", "range", "at most"], rows)
    quick = {name: found[name] for name in ("python -c pass", "--help", "validate")}
    slow = {name: seconds for name, seconds in found.items() if name.startswith(("run", "Ray"))}
    ours: Sequence[str] = [name for name in found if not name.startswith(("python", "Ray"))]
    drawn = [bars("A command begins", "seconds", quick, ours), bars("A run begins", "seconds", slow, ours)]
    return {"tables": [shown], "bars": drawn, "seconds": found}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.startup --pairs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return run_command(parser, compare, ("ray", "pyarrow", "pydantic"))


if __name__ == "__main__":
    sys.exit(main())
