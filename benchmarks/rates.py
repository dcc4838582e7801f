"""Pairs per CPU-second of each stage on this machine, which `python -m curation plan --pairs` reckons with.

`python -m benchmarks.rates`: one process, one thread, CPU seconds instead of wall time, so that other load on the
machine counts as little as it can; the best round. Ratios between stages carry over to other machines, absolute numbers
hardly do: measure on yours (--write puts the result into curation/rates.yaml), or give `plan` what a first run showed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.clip_models import random_model
from benchmarks.sides import ROOT, WORK

RATES = ROOT / "curation" / "rates.yaml"
# The picture that everything is measured on: about 40 KB, as the web's are.
SIZE, COARSE, QUALITY = (512, 384), (42, 31), 85
CHEAP: dict[str, Any] = {"text_length": {}, "language": {}, "emoji": {}, "aspect_ratio": {}, "min_size": {}}


def pictures(count: int) -> list[bytes]:
    import io

    import numpy as np
    from PIL import Image

    made = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (COARSE[1], COARSE[0], 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=QUALITY)
        made.append(out.getvalue())
    return made


def caption(number: int) -> str:
    return f"Red running shoes number {number} on a wooden table beside an open window, with laces and a white sole"


def best(count: int, work: Callable[[], object], rounds: int = 3) -> float:
    """Things per CPU-second, all threads of the process counted; the best round."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return count / min(seconds)


def measure_read(folder: Path, images: list[bytes], pairs: int) -> float:
    """Tar to committed unit with five cheap filters, two mappers and no CLIP: what a reading task does."""
    import tarfile
    from io import BytesIO

    import yaml

    from curation.commit import commit
    from curation.config import load
    from curation.unit import judge
    from curation.units import plan_units
    from shards.storage import Storage

    (folder / "in").mkdir()
    with tarfile.open(folder / "in/a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(pairs):
            for suffix, data in (("jpg", images[number % len(images)]), ("txt", caption(number).encode())):
                about = tarfile.TarInfo(f"{number:09d}.{suffix}")
                about.size = len(data)
                tar.addfile(about, BytesIO(data))
    settings = {
        "input": {"path": str(folder / "in"), "format": "webdataset"},
        "filters": CHEAP,
        "output": {"path": str(folder / "runs")},
    }
    (folder / "pipelines.yaml").write_text(yaml.safe_dump({"profiles": {"rates": settings}}))
    profile = load(folder / "pipelines.yaml").profile("rates")
    storage, (unit,) = plan_units(profile)
    output, prints = Storage.open(profile.run_folder), profile.fingerprints()
    scorers = {label: rule.setup() for label, rule in profile.cheap.items()}

    def work() -> None:
        manifest = commit(profile, prints, judge(profile, storage, unit, scorers), output)
        assert manifest["kept"] == pairs, manifest["reasons"]

    return best(pairs, work)


def measure_clip(model: str, images: list[bytes], count: int) -> float:
    """Survivors scored with a model on one thread: decode, resize, both towers, cosine."""
    import pyarrow as pa
    import torch

    from filters import clip_model
    from filters.clip_scorer import ClipScorer

    torch.set_num_threads(1)
    loaded = clip_model.load(model, "")
    scorer = ClipScorer(loaded, batch_size=32)
    table = pa.table(
        {
            "caption": [caption(number) for number in range(count)],
            "image": pa.array([images[number % len(images)] for number in range(count)], pa.large_binary()),
        }
    )
    scorer.score(table.slice(0, 32))
    return best(count, lambda: scorer.score(table), rounds=2)


def measure_decode(images: list[bytes], count: int) -> float:
    """Images decoded and brought to 224 pixels: what an actor's CPUs do for a GPU."""
    from dataclasses import asdict

    import torch
    from open_clip.transform import PreprocessCfg

    from filters.pixels import read_rgb
    from filters.square import Square

    torch.set_num_threads(1)
    prepare = Square.of(asdict(PreprocessCfg(size=224)))
    assert prepare is not None

    def work() -> None:
        for number in range(count):
            prepare(read_rgb(memoryview(images[number % len(images)]), 224))

    return best(count, work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"also writes {RATES.relative_to(ROOT)}")
    parser.add_argument("--pairs", type=int, default=3000, help="pairs of the reading part; default: %(default)s")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    images = pictures(200)
    size = sum(map(len, images)) / len(images)
    with tempfile.TemporaryDirectory() as folder:
        read = measure_read(Path(folder), images, options.pairs)
    decode = measure_decode(images, 300)
    demo = ROOT / "data" / "demo" / "clip"
    models = {"ViT-B-32": measure_clip(f"local-dir:{random_model(WORK / 'clip/ViT-B-32', 'ViT-B-32')}", images, 64)}
    if (demo / "open_clip_config.json").exists():
        models['"local-dir:data/demo/clip"'] = measure_clip(f"local-dir:{demo}", images, 512)
    else:
        sys.stderr.write("no data/demo/clip: `make demo` trains it; its rate is left out\n")
    packages = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "pillow", "torch"))
    lines = [
        "# Pairs or images per CPU-second, one thread. Written by: python -m benchmarks.rates --write",
        "# Ratios carry over to other machines, absolute numbers hardly do. No GPU was measured.",
        f"origin: {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}",
        f"measured_on: JPEGs of {size / 1000:.0f} KB, {SIZE[0]}x{SIZE[1]}; captions of {len(caption(1000))} characters",
        "# tar to committed unit, no CLIP: mappers, cheap filters, ledger, shard; a local disk, files in memory",
        f"read: {read:.0f}",
        "# decoded and resized to 224 pixels, which an actor's CPUs do for its GPU",
        f"decode: {decode:.0f}",
        "# decoded, resized and scored on a CPU in fp32",
        "clip_cpu:",
        *(f"  {name}: {rate:.1f}" for name, rate in sorted(models.items())),
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.write:
        RATES.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
