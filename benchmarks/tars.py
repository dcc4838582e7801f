"""Reading and writing tars: ours, webdataset's and Python's tarfile, and a plain copy of the same bytes.

Reading, from the page cache, to samples in the memory of one process:
  members       shards.tar on the mapped file, every member copied to bytes of its own, as webdataset gives them
  member views  the same without the copies: what the pipeline works on
  unit          curation.sources, which also decodes the caption, parses the JSON and counts keys; the image copied
  unit views    the same without the copy: what a reading task does
  webdataset    WebDataset(tars, shardshuffle=False), nothing decoded (it streams through tarfile, blocks of 10 KiB)
  tarfile       a stream in blocks of 64 KiB, its quickest, grouped at the first dot
  copy          the files into one buffer of 1 MiB that is used again
Writing, samples in memory to files below --work, each removed before the next (memory at hand), once none flushed (no
disk) and once all flushed as they are closed, as the pipeline has it:
  shards        shards.index.write_shard: the tar, its index, and the sha256 for the manifest
  unhashed      the same but for the sha256, so the difference is its cost
  webdataset    ShardWriter(encoder=False, mtime=0) into a file with a buffer of 1 MiB
  copy          the tar's bytes, 1 MiB at a time
All readers must give the same samples, keys and bytes, and webdataset must read the same from what each writer wrote.
Every side is a process of its own, which counts its CPU seconds from when it is ready; what that took is told apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.corpus import SAMPLES_A_TAR, write_corpus
from benchmarks.measure import BenchmarkError, measure, say
from benchmarks.peers import environment, versions
from benchmarks.shown import bars, table
from benchmarks.sides import ROOT, Measured, Side, add_options, in_turn, run_command
from benchmarks.tar_sides import READERS, WRITERS

PEER = "webdataset==1.0.2"
# What the figures are held against: at least so many times as many samples a CPU-second.
READ_TARGETS, WRITE_TARGETS = {"webdataset": 5.0, "tarfile": 4.0}, {"webdataset": 5.0}
OURS = ("members", "member views", "unit", "unit views", "shards", "unhashed")
# Writing is slower: these many of the samples are enough.
WRITTEN = 0.6


Found = dict[str, Measured]


class Comparison:
    """Where the inputs and outputs of all sides lie, and whose interpreter runs which."""

    def __init__(self, work: Path, samples: int, images: int) -> None:
        corpus = work / f"corpus-{samples}-{images}"
        self.about = write_corpus(corpus, samples, images)
        self.samples = samples
        self.tars = [str(path) for path in sorted(corpus.glob("[0-9]*.tar"))]
        self.bytes = sum(Path(path).stat().st_size for path in self.tars)
        self.out = work / "tars-out"
        self.one = str(work / "one-sample.tar")
        with open(self.tars[0], "rb") as file:
            Path(self.one).write_bytes(file.read(_first_sample(self.tars[0])) + bytes(1024))
        try:
            self.peer = environment(work, "webdataset", PEER)
        except BenchmarkError as error:
            say(f"{error}: this project's own webdataset is taken")
            self.peer = Path(sys.executable)

    def command(self, what: str, way: str, *rest: str) -> list[str]:
        python = str(self.peer) if way == "webdataset" else sys.executable
        return [python, "-m", "benchmarks.tar_sides", what, way, *rest]

    def in_turn(self, commands: Mapping[str, tuple[Sequence[str], Sequence[str]]], samples: int, pairs: int) -> Found:
        """commands: by side, the whole and next to none of it."""
        env = {"PYTHONPATH": str(ROOT)}
        sides = [Side(way, full, small, env=env, before=self.clear) for way, (full, small) in commands.items()]
        return {way: counted(measured) for way, measured in in_turn(sides, samples, pairs).items()}

    def digest(self, way: str, tars: Sequence[str]) -> str:
        told = measure(self.command("check", way, *tars), env={"PYTHONPATH": str(ROOT)}).output
        return str(json.loads(told)["sha256"])

    def read(self, pairs: int) -> Found:
        """All readers, once they have been seen to give the same."""
        found = {way: self.digest(way, self.tars) for way in READERS if way != "copy"}
        if len(set(found.values())) > 1:
            raise BenchmarkError(f"the readers give different samples: {found}")
        say(f"{len(found)} readers, the same {self.samples:,} samples (sha256 {found['members'][:12]})")
        commands = {
            way: (self.command("read", way, self.one, *self.tars), self.command("read", way, self.one))
            for way in READERS
        }
        return self.in_turn(commands, self.samples, pairs)

    def write(self, pairs: int, *durable: str) -> tuple[Found, int]:
        """All writers, once webdataset has read the same from all that they wrote; and the samples of each run."""
        tar, out = self.tars[0], str(self.out)
        wanted = self.digest("webdataset", [tar])
        for way in WRITERS:
            self.clear()
            measure(self.command("write", way, tar, out, "1", *durable), env={"PYTHONPATH": str(ROOT)})
            (written,) = map(str, self.out.glob("*.tar"))
            if self.digest("webdataset", [written]) != wanted:
                raise BenchmarkError(f"webdataset reads other samples from what {way!r} wrote")
        say(f"webdataset reads the same from what {', '.join(WRITERS)} wrote")
        in_tar = min(self.samples, SAMPLES_A_TAR)
        times = max(1, round(WRITTEN * self.samples / in_tar))
        commands = {
            way: tuple(self.command("write", way, tar, out, count, *durable) for count in (str(times), "0"))
            for way in WRITERS
        }
        try:
            return self.in_turn(commands, times * in_tar, pairs), times * in_tar
        finally:
            self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


def counted(measured: Measured) -> Measured:
    """The same side by what its process counted itself: exact, where a start-up that varies is subtracted is not."""
    told = [json.loads(cost.output) for cost in measured.costs]
    costs = [
        replace(cost, cpu=start.cpu + own["user"] + own["system"], wall=measured.start_wall + own["wall"])
        for start, cost, own in zip(measured.starts, measured.costs, told, strict=True)
    ]
    return replace(measured, costs=tuple(costs))


def _first_sample(tar: str) -> int:
    """Bytes of a tar's first sample."""
    from shards.storage import Storage
    from shards.tar import group, scan

    path = Path(tar)
    return next(group(scan(Storage.open(str(path.parent)).view(path.name)))).stop


def shown(title: str, found: Mapping[str, Measured], targets: Mapping[str, float]) -> dict[str, Any]:
    """A row for each side; ours with how many times the others they do, pair by pair."""
    rows = []
    for name, side in found.items():
        runs = [json.loads(cost.output) for cost in side.costs]
        each = {
            what: statistics.median(run[what] for run in runs) / side.samples for what in ("user", "system", "faults")
        }
        over = [str(side.over(found[other])) if name in OURS else "" for other in targets]
        share = _per_cent(side.over(found["copy"]).pairs) if name != "copy" else ""
        rows.append(
            [
                name,
                f"{side.rate:,.0f}",
                f"{side.as_json()['per_second']:,.0f}",
                f"{1e6 * each['user']:.1f}",
                f"{1e6 * each['system']:.1f}",
                f"{each['faults']:.1f}",
                f"{side.start:.2f}",
                *over,
                share,
            ]
        )
    head = ["side", "samples/CPU-s", "samples/s", "user us", "system us", "page faults", "start-up CPU-s"]
    return table(
        title, [*head, *(f"x {other}, at least {least:g}" for other, least in targets.items()), "of copy"], rows
    )


def _per_cent(shares: Sequence[float]) -> str:
    return f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def drawn(title: str, found: Mapping[str, Measured]) -> dict[str, Any]:
    return bars(title, "samples a CPU-second", {name: side.rates for name, side in found.items()}, OURS)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that there is to say, said; for --json."""
    if options.pairs < 1 or options.samples < 1 or options.images < 1:
        raise BenchmarkError("--pairs, --samples and --images are at least 1")
    options.work.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options.work, options.samples, options.images)
    count, size = len(comparison.tars), comparison.bytes
    images = f"images of {comparison.about['median_bytes'] / 1e3:.0f} KB in the middle"
    say(f"{count} tars of {comparison.samples:,} samples, {size / 1e6:,.0f} MB, {images}")
    read = comparison.read(options.pairs)
    write, written = comparison.write(options.pairs)
    flushed, _ = comparison.write(options.pairs, "durable")
    tables = [
        shown(f"Reading {comparison.samples:,} samples", read, READ_TARGETS),
        shown(f"Writing {written:,} samples, none flushed", write, WRITE_TARGETS),
        shown(f"Writing {written:,} samples, all flushed to the disk", flushed, WRITE_TARGETS),
    ]
    hashing = [
        1e6 / ours - 1e6 / bare for ours, bare in zip(write["shards"].rates, write["unhashed"].rates, strict=True)
    ]
    say(f"sha256: {statistics.median(hashing):.1f} us a sample ({min(hashing):.1f} to {max(hashing):.1f})")
    return {
        "corpus": comparison.about,
        "tables": tables,
        "bars": [
            drawn("Reading tars", read),
            drawn("Writing tars", write),
            drawn("Writing tars, flushed to the disk", flushed),
        ],
        "read": [side.as_json() for side in read.values()],
        "write": [side.as_json() for side in write.values()],
        "flushed": [side.as_json() for side in flushed.values()],
        "sha256_us": hashing,
        "versions": versions(comparison.peer, "webdataset"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.tars --samples 10000 --pairs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2_000, metavar="N", help="distinct ones; default: %(default)s")
    add_options(parser)
    return run_command(parser, compare, ())


if __name__ == "__main__":
    sys.exit(main())
