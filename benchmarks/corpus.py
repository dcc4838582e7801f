"""The samples that every benchmark of curation runs on: real captions on drawn images of the web's sizes, in tars.

The captions are those of the shared data where it is at hand (laion, html alt texts, titles of shops and videos, in
several languages), else the demo's. Images are the demo's scenes, 150 to 1500 pixels a side, some 40 KB in the middle;
distinct ones are repeated, since what costs time is their bytes, not what they show.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import statistics
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL.Image import Image

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("WINNOW_SHARED_DATA") or ROOT.parent / "shared" / "data")
SAMPLES_A_TAR = 5_000
# Of ten thousand images on the web most are JPEGs.
KINDS = (("jpg", "JPEG", 0.92), ("png", "PNG", 0.03), ("webp", "WEBP", 0.05))


def write_corpus(folder: Path, samples: int, images: int, seed: int = 0) -> dict[str, Any]:
    """Writes tars of SAMPLES_A_TAR samples (`<key>.jpg|png|webp`, `.txt`, `.json` with the url) unless they are there.

    Gives what there is to know of them: `samples`, `images`, `median_bytes`, `mean_bytes`, `captions`, their `source`.
    """
    about = folder / "corpus.json"
    wanted = {"samples": samples, "images": images, "seed": seed, "source": source()}
    if about.exists() and (found := json.loads(about.read_text())).items() >= wanted.items():
        return dict(found)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        drawn = list(pool.map(_image, range(seed * images, (seed + 1) * images), chunksize=16))
    texts = captions(seed)
    chance = random.Random(seed)
    for first in range(0, samples, SAMPLES_A_TAR):
        with tarfile.open(folder / f"{first // SAMPLES_A_TAR:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + SAMPLES_A_TAR, samples)):
                ending, data = drawn[chance.randrange(images)]
                url = f"https://images.example/{number:09d}.{ending}"
                members = ((ending, data), ("txt", texts[number % len(texts)].encode()), ("json", _json(url)))
                for kind, content in members:
                    entry = tarfile.TarInfo(f"{number:09d}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    sizes = [len(data) for _, data in drawn]
    told = {
        **wanted,
        "median_bytes": statistics.median(sizes),
        "mean_bytes": statistics.mean(sizes),
        "captions": len(texts),
    }
    about.write_text(json.dumps(told))
    return told


def source() -> str:
    """Whose captions there are."""
    return "shared data" if any((SHARED / "pairs_text").glob("*.parquet")) else "demo"


def _json(url: str) -> bytes:
    return json.dumps({"url": url}).encode()


def captions(seed: int) -> Sequence[str]:
    """Captions in a random order that the seed decides."""
    files = sorted((SHARED / "pairs_text").glob("*.parquet"))
    found = [
        text
        for path in files
        for text in pq.read_table(path, columns=["caption"]).column("caption").to_pylist()
        if text
    ]
    if not found:
        from demo.captions import caption
        from demo.scenes import sample_scene, sample_size

        chance = random.Random(seed)
        scenes = [sample_scene(chance, sample_size(chance)) for _ in range(5_000)]
        found = [caption(scene, "en", chance) for scene in scenes]
    random.Random(seed).shuffle(found)
    return found


def _image(number: int) -> tuple[str, bytes]:
    """One image: its ending and its bytes."""
    from demo.draw import draw
    from demo.scenes import sample_scene

    chance = random.Random(f"corpus/{number}")
    short = min(max(round(chance.lognormvariate(6.2, 0.4)), 150), 1100)
    long = min(round(short * chance.choice((1.0, 4 / 3, 4 / 3, 1.5, 1.5, 16 / 9, chance.uniform(1, 3.6)))), 1500)
    size = (long, short) if chance.random() < 0.65 else (short, long)
    ending, kind, _ = chance.choices(KINDS, [share for *_, share in KINDS])[0]
    picture = draw(sample_scene(chance, size))
    if kind == "PNG":
        return ending, _encoded(picture, kind)
    # Sites press large pictures harder: the quality that comes nearest to a size, 40 KB in the middle.
    wanted = chance.lognormvariate(math.log(50_000), 0.45)
    low, high = 25, 95
    while high - low > 2:
        quality = (low + high) // 2
        low, high = (quality, high) if len(_encoded(picture, kind, quality=quality)) < wanted else (low, quality)
    return ending, _encoded(picture, kind, quality=low)


def _encoded(picture: Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m benchmarks.corpus --out data/corpus --samples 10000"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2_000, metavar="N", help="distinct ones; default: %(default)s")
    options = parser.parse_args()
    told = write_corpus(options.out, options.samples, options.images)
    said = (f"{name} {value if isinstance(value, str) else format(value, ',.0f')}" for name, value in told.items())
    sys.stdout.write(", ".join(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
