"""Our sides of benchmarks.clip that run as commands: the unit functions in a plain loop, and the whole job on Ray.

Both curate the same tars with the same settings. The last line is JSON: `scored`, and `busy`, for each process that
held the model the share of the time in which the model was at work, from the first batch of all to the last of all.

`job` compares them: one process a core with one thread each, for Ray as many actors (by itself, without settings, the
job gives a machine of two cores one actor of one core, and the other to its readers). The job's actors keep the memory
that a model frees; a second loop does so too, which leaves what Ray costs. The model is a ViT-B/32 of random weights.
Start-up is a unit of one batch for each process: every model is loaded and warm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.clip_models import random_model
from benchmarks.corpus import write_corpus
from benchmarks.measure import BenchmarkError
from benchmarks.shown import bars, table
from benchmarks.sides import RAY_ENV, Side, cores, folder_name, in_turn
from curation.commit import commit
from curation.config import load
from curation.job import KEEP_FREED
from curation.profile import ClipResources, Profile
from curation.unit import judge, score_pixels
from curation.units import Unit, plan_units
from filters.base import Scorer
from filters.clip_score import ClipScore
from shards.storage import Storage

NAME = "clip"
RAY, PLAIN, KEPT = "Ray job", "plain loop", "plain loop, freed memory kept"
TARGET = 0.95
UNIT = 3  # batches
# One thread of a model a process.
ENV = {**RAY_ENV, "OMP_NUM_THREADS": "1"}


class Noted(ClipScore):
    """The filter itself, whose scorer also writes down when its model was at work: a file a process in `batches`."""

    batches: str

    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Scorer:
        return NotedScorer(super().setup(device, batch_size), Path(self.batches))


class NotedScorer:
    """Passes everything on to a ClipScorer; `on_batch` is whatever the job sets."""

    def __init__(self, scorer: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._scorer, self._file = scorer, (folder / str(os.getpid())).open("a", buffering=1)
        self.on_batch: Callable[[float], None] = lambda seconds: None
        scorer.on_batch = self._note

    def _note(self, seconds: float) -> None:
        self._file.write(f"{time.time()} {seconds}\n")
        self.on_batch(seconds)

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        scores: Mapping[str, pa.Array] = self._scorer.score(samples)
        return scores


def settings(corpus: Path, out: Path, model: Path, unit: int, actors: int, batch: int) -> dict[str, Any]:
    """A profile with the CLIP stage alone, which keeps all. unit: samples of a unit.

    actors: how many share the cores with the reader, which needs next to none; 0: as the job divides them by itself.
    """
    clip: dict[str, Any] = {"batch_size": batch}
    resources: dict[str, Any] = {"clip": clip}
    if actors:
        clip |= {"num_cpus": 0.75, "actors": [actors, actors]}
        resources["read"] = {"num_cpus": 0.25}
    rule = {"filter": "benchmarks.clip_sides:Noted", "model": f"local-dir:{model}", "min": -1.0}
    return {
        "input": {"path": str(corpus), "format": "webdataset"},
        "mappers": [],  # the peer's captions are as they are
        "filters": {"clip_score": {**rule, "batches": str(out / "batches")}},
        "units": {"max_samples": unit},
        "resources": resources,
        "output": {"path": str(out / "runs")},
    }


def write_settings(path: Path, told: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"profiles": {NAME: told}}, sort_keys=False))
    return path


class Loop:
    """What one process of the plain loop holds."""

    def __init__(self, file: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.profile: Profile = load(file).profile(NAME)
        self.storage = Storage.open(self.profile.input.path)
        self.output, self.prints = Storage.open(self.profile.run_folder), self.profile.fingerprints()
        self.cheap = {label: rule.setup() for label, rule in self.profile.cheap.items()}
        size = self.profile.resources.clip.batch_size
        self.pixel = {label: rule.setup("cpu", size) for label, rule in self.profile.pixel.items()}

    def unit(self, unit: Unit) -> int:
        judged = judge(self.profile, self.storage, unit, self.cheap)
        score_pixels(self.profile, judged, self.pixel)
        scored: int = commit(self.profile, self.prints, judged, self.output)["scored"]["clip_score"]
        return scored


_loop: Loop | None = None


def _begin(file: Path, threads: int) -> None:
    global _loop
    _loop = Loop(file, threads)


def _unit(text: str) -> int:
    assert _loop is not None
    return _loop.unit(Unit.from_json(text))


def plain(file: Path, processes: int, threads: int) -> int:
    """Units in a loop, in so many processes; gives the number of pairs scored."""
    _, units = plan_units(load(file).profile(NAME))
    if processes == 1:
        _begin(file, threads)
        return sum(_unit(unit.to_json()) for unit in units)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (file, threads)) as pool:
        return sum(pool.map(_unit, [unit.to_json() for unit in units]))


def on_ray(file: Path) -> int:
    """`python -m curation run`, from the shell's first import on."""
    from curation.run import run

    result = run(load(file).profile(NAME))
    if result.failed:
        raise BenchmarkError(f"{len(result.failed)} units failed: {result.failed[0].error}")
    return result.totals.scored["clip_score"]


def busy(folder: Path) -> list[float]:
    """Of each process that held the model, the share of the time from the first batch of all to the last of all."""
    notes = [
        [tuple(map(float, line.split())) for line in path.read_text().splitlines()] for path in sorted(folder.iterdir())
    ]
    whole = [note for found in notes for note in found]
    if not whole:
        return [0.0] * len(notes)
    window = max(ended for ended, _ in whole) - min(ended - seconds for ended, seconds in whole)
    return [sum(seconds for _, seconds in found) / window for found in notes]


def cosines(out: Path) -> dict[str, float]:
    """By the source's key, of the ledger of a run; those that were scored."""
    tables = [
        pq.read_table(path, columns=["source_key", "clip_score_cosine"])
        for path in (out / "runs" / NAME / "ledger").iterdir()
    ]
    rows = [row for found in tables for row in found.to_pylist()]
    return {row["source_key"]: row["clip_score_cosine"] for row in rows if row["clip_score_cosine"] is not None}


def side(
    way: str,
    home: Path,
    name: str,
    full: dict[str, Any],
    small: dict[str, Any],
    *options: str,
    env: Mapping[str, str] = ENV,
) -> Side:
    """A side of `in_turn`. full, small: settings of its two commands."""
    commands = []
    for told, file in ((full, "full.yaml"), (small, "small.yaml")):
        path = write_settings(home / file, told)
        commands.append([sys.executable, "-m", "benchmarks.clip_sides", way, "--settings", str(path), *options])
    return Side(name, *commands, env=env, before=partial(clear, home))


def clear(home: Path) -> None:
    for folder in ("runs", "batches"):
        shutil.rmtree(home / folder, ignore_errors=True)


def job(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The part of benchmarks.clip."""
    processes = cores()
    batch = ClipResources().batch_size
    first, count = processes * batch, options.samples
    whole = first + count
    model = random_model(work / "ViT-B-32", "ViT-B-32")
    corpora = []
    for samples in (first, whole):
        corpora.append(work / f"corpus-job-{samples}")
        write_corpus(corpora[-1], samples, min(samples, 500))
    sides = []
    homes = {name: work / folder_name(name) for name in (RAY, PLAIN, KEPT)}
    for name, home in homes.items():
        way, *told = ("ray",) if name == RAY else ("plain", "--processes", str(processes))
        env = {**ENV, **KEEP_FREED} if name == KEPT else ENV
        small, full = (
            settings(corpus, home, model, unit, processes, batch)
            for corpus, unit in zip(corpora, (batch, UNIT * batch), strict=True)
        )
        sides.append(side(way, home, name, full, small, *told, env=env))
    found = in_turn(sides, count, options.job_pairs)
    mine = cosines(homes[RAY])
    for name in (PLAIN, KEPT):
        theirs = cosines(homes[name])
        if mine != theirs or len(mine) != whole:
            differ = sum(theirs.get(key) != value for key, value in mine.items())
            raise BenchmarkError(f"{RAY} and {name} differ in {differ} of {len(mine)} scores, {whole} samples")
    shares = {
        name: [min(json.loads(cost.output.splitlines()[-1])["busy"], default=0.0) for cost in side.costs]
        for name, side in found.items()
    }
    rows = []
    for name in found:
        rates = found[name].as_json()
        over = str(found[RAY].over(found[name])) if name != RAY else ""
        middle = statistics.median(shares[name])
        costs = f"{found[name].start:.1f}", f"{found[name].start_wall:.1f}"
        rows.append([name, f"{found[name].rate:.1f}", f"{rates['per_second']:.1f}", over, f"{middle:.1%}", *costs])
    head = [
        "side",
        "images/CPU-s",
        "images/s",
        f"the job's images/CPU-s over it, at least {TARGET}",
        "in the model, least busy",
    ]
    title = f"{count:,} images in units of {UNIT * batch}, ViT-B/32, {processes} processes of one thread; scores alike"
    shown = table(title, [*head, "start, CPU-s", "start, s"], rows)
    plot = bars("The whole job with a CLIP stage", "images a CPU-second", {k: v.rates for k, v in found.items()}, [RAY])
    figures = {"sides": [side.as_json() for side in found.values()], "busy": shares}
    return {"tables": [shown], "bars": [plot], "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("plain", "ray"))
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE", help="what `write_settings` wrote")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the loop; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each process; default: %(default)s")
    options = parser.parse_args()
    if options.way == "ray":
        scored = on_ray(options.settings)
    else:
        scored = plain(options.settings, options.processes, options.threads)
    told = yaml.safe_load(options.settings.read_text())["profiles"][NAME]
    shares = busy(Path(told["filters"]["clip_score"]["batches"]))
    sys.stdout.write(json.dumps({"scored": scored, "busy": shares}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
