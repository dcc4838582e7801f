"""The CLIP stage: beside its bare model, its decoding beside the cheapest ways known, beside data-juicer, and on Ray.

`python -m benchmarks.clip` runs five parts (--parts), on images of the web's sizes:

  stage   curation.unit.score_pixels with a ViT-B/32 of random weights, and the same model fed with ready tensors from
          memory, at the same batch size and number of threads: captions at full length, as open_clip has them, or as
          short as the stage reads them; and one pair at a time
  pixels  from an image's bytes to what the model sees: filters.pixels and filters.square, and ways of Pillow,
          torch, torchvision, OpenCV and simplejpeg (benchmarks/clip_pixels.py), at 224 pixels on the web's sizes and at
          64 on photographs; correct is a way that leaves the cosines of the demo's CLIP where they are
  scores  those cosines through our path, and of open_clip's own preprocessing at full scale, on photographs
  peer    data-juicer's image_text_similarity_filter at equal weights (benchmarks/clip_peer.py)
  job     the whole Ray job, and our unit functions in a plain loop, with the same ViT-B/32 (benchmarks/clip_sides.py)

Photographs are those of the shared data; where it is absent `pixels` takes the drawn images for them, and `scores` is
left out. The demo's CLIP is trained at first use (a minute) unless --model has one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clip_models import random_model
from benchmarks.corpus import write_corpus
from benchmarks.measure import BenchmarkError, Ratio, say
from benchmarks.shown import bars, table
from benchmarks.sides import add_options, cores, run_command
from curation.profile import ClipResources, UnitLimits

PARTS = ("stage", "pixels", "scores", "peer", "job")
TARGET = 0.95
OURS, BARE = "CLIP stage", "bare model"
SHORT, ONE = "bare model, captions read short", "bare model, one pair at a time"


def turns(ways: Mapping[str, Callable[[], object]], pairs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds on the clock and of the CPU for each of several functions, called in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(pairs):
        for name in ways if turn % 2 == 0 else reversed(ways):
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name]()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            say(f"  {turn + 1}/{pairs} {name}: {found[name][-1][1]:.1f} CPU-seconds, {found[name][-1][0]:.1f} s")
    return found


class Stage:
    """score_pixels on one unit, and its model on the same pixels and tokens."""

    def __init__(self, corpus: Path, model: Path, batch: int) -> None:
        from curation.profile import Input, Profile
        from curation.unit import judge
        from curation.units import plan_units
        from filters import clip_model
        from filters.clip_score import ClipScore
        from filters.clip_scorer import ClipScorer

        rule = ClipScore(model=f"local-dir:{model}", min=-1.0)
        source = Input(path=str(corpus), format="webdataset")
        self.profile = Profile(name="stage", mappers=(), filters={"clip_score": rule}, input=source)
        storage, (unit,) = plan_units(self.profile)
        self.judged = judge(self.profile, storage, unit, {})
        self.loaded = clip_model.load(rule.model, "")
        scorer = ClipScorer(self.loaded, batch_size=batch)
        self.in_model: list[float] = []
        scorer.on_batch = self.in_model.append
        self.scorers, self.batch = {"clip_score": scorer}, batch

    def ours(self) -> list[float]:
        from curation.unit import Judged, score_pixels

        judged = Judged(self.judged.unit, self.judged.rows, self.judged.problems, self.judged.images)
        score_pixels(self.profile, judged, self.scorers)
        cosines: list[float] = judged.rows["clip_score_cosine"].to_pylist()
        return cosines

    def ready(self) -> None:
        """The batches that the bare model is fed with."""
        import torch

        from filters.pixels import read_rgb

        captions = self.judged.rows["caption"].to_pylist()
        pixels = [self.loaded.preprocess(read_rgb(memoryview(image), self.loaded.side)) for image in self.judged.images]
        starts = range(0, len(pixels), self.batch)
        self.batches = [
            (
                torch.stack(pixels[start : start + self.batch]),
                self.loaded.tokenizer(captions[start : start + self.batch]),
            )
            for start in starts
        ]

    def bare(self, size: int | None = None) -> list[float]:
        """The model at its context's length. size: pairs at a time; a batch."""
        import torch

        cosines: list[float] = []
        with torch.inference_mode():
            for batch in self.batches:
                for pixels, tokens in zip(*(part.split(size or self.batch) for part in batch), strict=True):
                    seen = self.loaded.model.encode_image(pixels, normalize=True)
                    cosines += (seen * self.loaded.model.encode_text(tokens, normalize=True)).sum(dim=-1).tolist()
        return cosines

    def short(self) -> None:
        """The same passes as the stage's."""
        import torch

        from filters.clip_text import Reader

        reader = Reader(self.loaded.model, self.loaded.lengths, self.batch, torch.device("cpu"))
        with torch.inference_mode():
            for number, (pixels, tokens) in enumerate(self.batches):
                self.loaded.model.encode_image(pixels)
                reader.add(range(number * self.batch, number * self.batch + len(tokens)), tokens)
            reader.finish()


def stage(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    batch, count, threads = ClipResources().batch_size, options.images, cores()
    torch.set_num_threads(threads)
    corpus = work / f"corpus-{count}"
    write_corpus(corpus, count, count)
    made = Stage(corpus, random_model(work / "ViT-B-32", "ViT-B-32"), batch)
    made.ready()
    apart = max(abs(a - b) for a, b in zip(made.ours(), made.bare(), strict=True))  # warms both up, too
    if apart > 1e-4:
        raise BenchmarkError(f"stage and bare model differ by {apart:.5f} in a cosine")
    made.in_model.clear()
    ways = {OURS: made.ours, BARE: made.bare, SHORT: made.short, ONE: partial(made.bare, 1)}
    found = turns(ways, options.pairs)
    walls, cpus = ({name: [count / run[kind] for run in runs] for name, runs in found.items()} for kind in (0, 1))
    busy = sum(made.in_model) / sum(wall for wall, _ in found[OURS])
    title = f"ViT-B/32 of random weights, {count} images in batches of {batch}, {threads} threads"
    rows = []
    for name in ways:
        shares = [
            str(Ratio(tuple(a / b for a, b in zip(rates[OURS], rates[name], strict=True)))) for rates in (walls, cpus)
        ]
        told = ["", "", f"{busy:.1%}"] if name == OURS else [*shares, ""]
        rows.append([name, *(f"{statistics.median(rates[name]):.1f}" for rates in (walls, cpus)), *told])
    head = ["side", "images/s", "images/CPU-s", f"the stage's images/s over it, at least {TARGET}"]
    shown = table(title, [*head, "images/CPU-s over it", "in the model"], rows)
    figures = {"images_per_second": walls, "images_per_cpu_second": cpus, "busy": busy, "most_apart": apart}
    plot = bars("The CLIP stage, ViT-B/32", "images a second", walls, [OURS])
    return {"tables": [shown], "bars": [plot], "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.clip --parts stage,pixels --pairs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="of the stage; default: %(default)s")
    parser.add_argument("--peer-samples", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=1_088, metavar="N", help="of the job; default: %(default)s")
    parser.add_argument("--job-pairs", type=int, default=5, metavar="N", help="of the job; default: %(default)s")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a folder with the demo's CLIP (data/demo/clip)")
    parser.add_argument("--no-peers", action="store_true", help="without `peer` and simplejpeg: installs nothing")
    return run_command(parser, run, ("torch", "open_clip_torch", "pillow", "torchvision", "ray"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import clip_peer, clip_scores, clip_sides

    parts = [name for name in options.parts.split(",") if name and not (name == "peer" and options.no_peers)]
    if unknown := [name for name in parts if name not in PARTS]:
        raise BenchmarkError(f"--parts: there is no {unknown[0]!r}: {', '.join(PARTS)}")
    if min(options.pairs, options.job_pairs, options.images, options.samples, options.peer_samples) < 1:
        raise BenchmarkError("--pairs, --job-pairs, --images, --samples and --peer-samples are at least 1")
    if options.images % ClipResources().batch_size or UnitLimits().max_samples < max(
        options.images, options.peer_samples
    ):
        raise BenchmarkError(
            f"--images are whole batches of {ClipResources().batch_size}; neither they nor --peer-samples are over "
            f"{UnitLimits().max_samples:,}, which is a unit"
        )
    if options.model is not None and not (options.model / "open_clip_config.json").is_file():
        raise BenchmarkError(f"--model: {options.model} has no open_clip_config.json: `make demo` makes data/demo/clip")
    work = (options.work / "clip").resolve()
    ways: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
        "stage": stage,
        "pixels": clip_scores.pixels,
        "scores": clip_scores.scores,
        "peer": clip_peer.peer,
        "job": clip_sides.job,
    }
    whole: dict[str, Any] = {"tables": [], "bars": []}
    for name in parts:
        say(f"\n== {name}")
        found = ways[name](options, work)
        whole = {**whole, name: found["figures"], **{kind: whole[kind] + found[kind] for kind in ("tables", "bars")}}
    return whole


if __name__ == "__main__":
    sys.exit(main())
