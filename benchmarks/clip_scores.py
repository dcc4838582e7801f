"""Parts of benchmarks.clip: what ways to a model's pixels cost, and what they do to its cosines."""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clip_pixels import FULL, OURS, ways
from benchmarks.corpus import SHARED, write_corpus
from benchmarks.measure import say
from benchmarks.shown import bars, table
from benchmarks.sides import by_turns, ratio

TARGET = 1.2
# What reduced decoding may do to the cosines of the demo's CLIP: on average, at the 99th percentile.
MEAN, PERCENTILE_99 = 2e-3, 1e-2
SIDE, DEMO_SIDE = 224, 64


def samples_of(tar: Path) -> Iterator[tuple[bytes, str]]:
    """Image and caption of each sample."""
    with tarfile.open(tar) as file:
        image = b""
        for member in file:
            ending, content = member.name.rpartition(".")[2], file.extractfile(member)
            data = content.read() if content else b""
            if ending == "txt":
                yield image, data.decode()
            elif ending != "json":
                image = data


def photographs(most: int | None = None) -> list[tuple[bytes, str]]:
    """Real photographs with the first of their captions, of every file alike; none where the shared data is absent."""
    tars = sorted((SHARED / "pairs_image").glob("*.tar"))
    found = [(image, caption.split("\n")[0]) for path in tars for image, caption in samples_of(path)]
    return found if most is None or most >= len(found) else found[:: -(-len(found) // most)]


def demo_clip(options: argparse.Namespace, work: Path) -> Path:
    """A folder with the demo's CLIP."""
    from demo.clip import ensure_clip

    if options.model is not None:
        return options.model
    folder: Path = work / "demo-clip"
    if not (folder / "card.json").exists():
        say("training the demo's CLIP (a minute) ...")
    ensure_clip(folder)
    return folder


def distances(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean, 99th percentile and greatest of the absolute differences."""
    apart = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
    return float(apart.mean()), float(np.quantile(apart, 0.99)), float(apart.max())


def pixels(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    from filters import clip_model

    torch.set_num_threads(1)
    there = ways(None if options.no_peers else options.work.resolve())
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    corpus = work / "corpus-pixels"
    write_corpus(corpus, 150, 150)
    drawn = list(samples_of(corpus / "00000.tar"))
    photos = [sample for sample in photographs(600) if not turned(sample[0])]
    loaded = clip_model.load(f"local-dir:{demo_clip(options, work)}", "")
    inputs = {
        SIDE: ([data for data, _ in drawn], False),
        DEMO_SIDE: ([data for data, _ in (photos or drawn)[:200]], True),
    }
    seconds = {
        side: by_turns({name: partial(each, way, images, side, squash) for name, way in there.items()}, options.pairs)
        for side, (images, squash) in inputs.items()
    }
    scores = {
        name: cosines(loaded, partial(way, side=DEMO_SIDE, squash=True), photos or drawn) for name, way in there.items()
    }
    apart = {name: distances(found, scores[FULL]) for name, found in scores.items()}
    correct = {name for name, (mean, most, _) in apart.items() if mean <= MEAN and most <= PERCENTILE_99}
    whole = [there[FULL](data, SIDE, False) for data, _ in drawn]
    rows, drawn_bars, cheapest = [], [], []
    rates = {
        side: {name: [len(inputs[side][0]) / second for second in runs] for name, runs in found.items()}
        for side, found in seconds.items()
    }
    for name, way in there.items():
        moved = statistics.mean(
            float((way(data, SIDE, False) - full).abs().mean()) for (data, _), full in zip(drawn, whole, strict=True)
        )
        mean, most, _ = apart[name]
        told = [f"{moved * 0.27 * 255:.2f}", f"{mean:.4f}", f"{most:.4f}", "yes" if name in correct else "no"]
        rows.append([name, *(f"{statistics.median(rates[side][name]):.0f}" for side in inputs), *told])
    over = {}
    for side in inputs:
        best = min((name for name in correct if name != OURS), key=lambda name: statistics.median(seconds[side][name]))
        over[side] = ratio(seconds[side][best], seconds[side][OURS])
        cheapest.append([f"{side} pixels", best, str(over[side]), f"{TARGET:g}"])
        drawn_bars.append(bars(f"Decoded and resized to {side} pixels", "images a CPU-second", rates[side], [OURS]))
    of = f"{len(photos)} photographs" if photos else f"{len(drawn)} drawn images (no photographs here)"
    head = ["way", f"{SIDE} px, images/CPU-s", f"{DEMO_SIDE} px, images/CPU-s", f"levels apart, {SIDE} px"]
    tables = [
        table(
            f"Bytes to pixels, one thread; cosines of the demo's CLIP on {of} against full scale",
            [*head, "cosines apart, mean", "99 %", f"correct ({MEAN:g}, {PERCENTILE_99:g})"],
            rows,
        ),
        table("Time of ours over the cheapest correct way's", ["", "cheapest", "ratio", "at most"], cheapest),
    ]
    figures = {
        "images_per_cpu_second": rates,
        "cosines_apart": apart,
        "over_cheapest": {k: v.pairs for k, v in over.items()},
    }
    return {"tables": tables, "bars": drawn_bars, "figures": figures}


def each(way: Callable[[bytes, int, bool], Any], images: Sequence[bytes], side: int, squash: bool) -> None:
    for data in images:
        way(data, side, squash)


def turned(data: bytes) -> bool:
    """Whether EXIF asks for another orientation than the pixels': open_clip does not look, we do."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) != 1


def full_scale(config: Mapping[str, Any]) -> Callable[[bytes], Any]:
    """open_clip's own preprocessing, of the whole picture turned upright. config: its `preprocess_cfg`."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image, ImageOps

    prepare = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return lambda data: prepare(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def cosines(loaded: Any, prepare: Callable[[bytes], Any], samples: Sequence[tuple[bytes, str]]) -> list[float]:
    import torch

    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(samples), 64):
            images, captions = zip(*samples[start : start + 64], strict=True)
            seen = loaded.model.encode_image(torch.stack([prepare(data) for data in images]), normalize=True)
            read = loaded.model.encode_text(loaded.tokenizer(list(captions)), normalize=True)
            found += (seen * read).sum(dim=-1).tolist()
    return found


def scores(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import pyarrow as pa
    from PIL import Image

    from filters import clip_model
    from filters.clip_scorer import ClipScorer
    from filters.pixels import read_rgb

    samples = photographs()
    if not samples:
        say(f"scores: left out, there are no photographs in {SHARED}")
        return {"tables": [], "bars": [], "figures": {}}
    loaded = clip_model.load(f"local-dir:{demo_clip(options, work)}", "")
    images = pa.array([data for data, _ in samples], pa.large_binary())
    told = ClipScorer(loaded).score(pa.table({"caption": [caption for _, caption in samples], "image": images}))

    whole = cosines(loaded, full_scale(loaded.model.visual.preprocess_cfg), samples)
    mine = told["cosine"].to_pylist()
    failed = mine.count(None)
    reduced = [
        place
        for place, (data, _) in enumerate(samples)
        if mine[place] is not None
        and set(read_rgb(memoryview(data), loaded.side).size) != set(Image.open(io.BytesIO(data)).size)
    ]
    rows, figures = [], {"turned": sum(turned(data) for data, _ in samples), "failed": failed}
    for name, places in (
        ("all", [n for n, value in enumerate(mine) if value is not None]),
        ("decoded reduced", reduced),
    ):
        mean, most, greatest = distances([mine[place] for place in places], [whole[place] for place in places])
        reached = "yes" if mean <= MEAN and most <= PERCENTILE_99 else "no"
        rows.append([name, f"{len(places):,}", f"{mean:.5f}", f"{most:.5f}", f"{greatest:.4f}", reached])
        figures[name] = {"photographs": len(places), "mean": mean, "percentile_99": most, "greatest": greatest}
    title = "Cosines of the demo's CLIP: our path against open_clip's at full scale, on real photographs"
    head = ["photographs", "", f"mean, at most {MEAN:g}", f"99 %, at most {PERCENTILE_99:g}", "greatest", "reached"]
    return {"tables": [table(title, head, rows)], "bars": [], "figures": figures}
