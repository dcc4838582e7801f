"""The whole job on Ray against our own unit functions in a plain loop: the same units, the same bytes.

  Ray job     `python -m curation run`: plan, lease, one Ray Data task a unit, attempt markers, the data set's manifest
  plain loop  judge -> commit on every unit, one process a core, each with its share of the units; no Ray, no markers,
              nothing that could be continued after a kill

Five filters and two mappers without CLIP, tars in, ledger and shards out, with the language filter's detector off and
on. Both sides' start-up (the same command on one sample a core, which waits until every core has one, so that all
processes have started and loaded what they need) is subtracted and told apart. At the end both must have left the same
files: shards, indices, ledger and review samples to the byte, and the same unit manifests but for the seconds in them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.corpus import write_corpus
from benchmarks.loop import loop
from benchmarks.measure import BenchmarkError, say
from benchmarks.pack import warm
from benchmarks.peer_rules import FILTERS
from benchmarks.shown import bars, table
from benchmarks.sides import RAY_ENV, Measured, Side, add_options, cached, cores, in_turn, run_command
from curation.config import ConfigError
from shards.storage import Storage
from shards.tar import group, scan

PROFILE = "job"
RAY, PLAIN = "Ray job", "plain loop"
# More memory than that no run is short of, where the one before it has given back its own.
WARM = 4 << 30
# Below a side's folder: where the processes of a start-up wait for one another.
WAIT = "together"
# Of the plain loop's throughput per CPU-second.
TARGET = 0.85
# What both sides write, and must write alike.
WRITTEN = ("ledger", "shards", "samples", "units")


def write_profile(home: Path, tars: Path, detector: str = "none", **settings: Any) -> Path:
    """A configuration of one profile on a folder of tars, whose run goes to `home`/runs/job."""
    filters = {**FILTERS, "language": {**FILTERS["language"], "detector": detector}}
    return _write_profile(home, "full", tars, filters, settings)


def write_start(home: Path, tars: Path, detector: str = "none") -> Path:
    """The same on the first sample of the first tar, once for each core: what a run's start-up is measured on."""
    folder = home / "first"
    folder.mkdir(parents=True, exist_ok=True)
    tar = min(tars.glob("*.tar"))
    first = next(iter(group(scan(Storage.open(str(tar.parent)).view(tar.name)))))
    with tar.open("rb") as file:
        data = file.read(first.stop) + bytes(1024)
    for number in range(cores()):
        (folder / f"{number:05d}.tar").write_bytes(data)
    wait = {"filter": "benchmarks.together:Together", "folder": str(home.resolve() / WAIT), "processes": cores()}
    filters = {**FILTERS, "language": {**FILTERS["language"], "detector": detector}}
    return _write_profile(home, "start", folder, {"together": wait, **filters}, {})


def _write_profile(home: Path, name: str, tars: Path, filters: Any, settings: Mapping[str, Any]) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    profile = {
        "input": {"path": str(tars.resolve()), "format": "webdataset"},
        "mappers": ["html", "patterns"],
        "filters": filters,
        "output": {"path": str(home.resolve() / "runs")},
        **settings,
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"profiles": {PROFILE: profile}}, sort_keys=False))
    return path


def ray_job(config: Path) -> list[str]:
    return [sys.executable, "-m", "curation", "run", PROFILE, "--config", str(config)]


def plain_loop(config: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.job", "--plain", str(config)]


def clear(home: Path) -> None:
    for folder in ("runs", WAIT):
        shutil.rmtree(home / folder, ignore_errors=True)


def ready(home: Path, tars: Path) -> None:
    """Before a run: no output, its input in the page cache, and memory that the machine has at hand for as much again.

    Both cost more system time than what is measured where a virtual machine has to fetch memory first.
    """
    clear(home)
    cached(tars)
    warm(home, min(sum(tar.stat().st_size for tar in tars.glob("*.tar")), WARM))


def digests(run: Path) -> dict[str, str]:
    """sha256 by path of what a run wrote for its units; manifests without their seconds and the hash over these."""
    found = {}
    for path in sorted(path for folder in WRITTEN for path in (run / folder).iterdir()):
        if path.parent.name == "units":
            manifest = json.loads(path.read_text())
            data = json.dumps({name: value for name, value in manifest.items() if name not in ("seconds", "sha256")})
            found[f"units/{path.name}"] = hashlib.sha256(data.encode()).hexdigest()
        else:
            with path.open("rb") as file:
                found[f"{path.parent.name}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def must_agree(ours: Path, theirs: Path) -> dict[str, Any]:
    """What two runs wrote alike. Raises `BenchmarkError` where they differ in any byte that counts."""
    first, second = digests(ours), digests(theirs)
    differ = sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))
    if differ or not first:
        raise BenchmarkError(f"the sides' outputs differ in {len(differ)} of {len(first)} files: {differ[:3]}")
    manifests = [json.loads(path.read_text()) for path in (ours / "units").iterdir()]
    told = {name: sum(manifest[name] for manifest in manifests) for name in ("listed", "kept")}
    return {"files": len(first), **told}


def compare(folder: Path, tars: Path, samples: int, detector: str, pairs: int) -> tuple[dict[str, Measured], Any]:
    """Both sides in turn with one detector, once they have been seen to write the same."""
    homes = {RAY: folder / "ray", PLAIN: folder / "plain"}
    commands = {RAY: ray_job, PLAIN: plain_loop}
    sides = [
        Side(
            name,
            commands[name](write_profile(home, tars, detector)),
            commands[name](write_start(home, tars, detector)),
            env=RAY_ENV,
            before=partial(ready, home, tars),
        )
        for name, home in homes.items()
    ]
    try:
        found = in_turn(sides, samples, pairs)
        told = must_agree(*(home / "runs" / PROFILE for home in homes.values()))
    finally:
        for home in homes.values():
            clear(home)
    if told["listed"] != samples:
        raise BenchmarkError(f"{told['listed']:,} samples were decided, there are {samples:,}")
    say(f"{told['files']} files alike in every byte; {told['kept']:,} of {told['listed']:,} samples kept")
    return found, told


def row(detector: str, side: Measured, other: Measured) -> list[str]:
    wall = side.as_json()["per_second"]
    over = [str(side.over(other)), _wall(side, other)] if side is not other else ["", ""]
    return [
        detector,
        side.name,
        f"{side.rate:,.0f}",
        f"{wall:,.0f}",
        *over,
        f"{side.start:.1f}",
        f"{side.start_wall:.1f}",
    ]


def _wall(side: Measured, other: Measured) -> str:
    """Throughput by the clock as a share of the other's."""
    return f"{side.as_json()['per_second'] / other.as_json()['per_second']:.2f}"


def everything(options: argparse.Namespace) -> dict[str, Any]:
    if options.plain:
        loop(options.plain, PROFILE)
        return {}
    if options.pairs < 1 or options.samples < 1 or options.images < 1:
        raise BenchmarkError("--pairs, --samples and --images are at least 1")
    work = options.work.resolve()
    corpus = work / f"corpus-{options.samples}-{options.images}"
    about = write_corpus(corpus, options.samples, options.images)
    rows, drawn, figures = [], [], {}
    for detector in options.detectors:
        say(f"detector: {detector}")
        found, told = compare(work / "job", corpus, options.samples, detector, options.pairs)
        rows += [row(detector, found[name], found[PLAIN]) for name in (RAY, PLAIN)]
        drawn.append(
            bars(
                f"The whole job, detector: {detector}",
                "samples a CPU-second",
                {name: side.rates for name, side in found.items()},
                [RAY],
            )
        )
        figures[detector] = {"sides": [side.as_json() for side in found.values()], "alike": told}
    shutil.rmtree(work / "job", ignore_errors=True)
    head = [
        "detector",
        "side",
        "samples/CPU-s",
        "samples/s",
        f"of the loop's per CPU-s, at least {TARGET:.2f}",
        "of its samples/s",
        "start, CPU-s",
        "start, s",
    ]
    shown = table(f"{options.samples:,} samples, tars to ledger and shards, on {cores()} cores", head, rows)
    return {"corpus": about, "tables": [shown], "bars": drawn, "by_detector": figures}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.job --samples 10000 --pairs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2_000, metavar="N", help="distinct ones; default: %(default)s")
    parser.add_argument(
        "--detectors", nargs="+", default=["none", "fasttext"], metavar="NAME", help="default: none fasttext"
    )
    parser.add_argument("--plain", type=Path, metavar="CONFIG", help="runs the plain loop on a configuration and ends")
    add_options(parser)
    return run_command(parser, everything, ("ray", "pyarrow"), (ConfigError,))


if __name__ == "__main__":
    sys.exit(main())
