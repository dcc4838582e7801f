"""Data sets of the second and the third training stage: demo samples in shards, with others held out to look at.

The decision behind this module: a sample follows from the name of its data set, the seed and its number alone, so that
any worker writes the same shard, and what is held out is drawn from scenes that no training sees.
"""

from __future__ import annotations

import os
import random
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from demo.clip import source_digest
from demo.folder import in_place_of, prepare, sweep
from demo.tasks import draw_images, sample_of
from demo.train_clip import Progress
from shards.index import write_shard
from shards.manifest import DatasetManifest, ManifestError, ShardEntry, read_manifest, write_manifest
from shards.schema import dump_sample
from shards.storage import Storage

PER_SHARD = 1000  # samples
_SOURCES = ("demo.scenes", "demo.draw", "demo.captions", "demo.facts", "demo.tasks", "demo.stages", "shards.schema")


class DataSet(NamedTuple):
    """`shares`: how often each task of `demo.tasks.sample_of` comes, in any unit."""

    name: str
    samples: int
    shares: dict[str, int]


# Most is short answers: each box is 19 tokens, and where boxes and long texts prevail the two of an answer are hardly
# heard. Colours and counts, which `demo.answers` asks for, are asked often; `vqa` has them, too.
MULTI_TASK = {
    "colour": 34, "count": 14, "vqa": 12, "refer": 26, "region_caption": 4, "caption": 3,
    "grounded_caption": 2, "ocr_vqa": 2, "ocr": 1, "text": 2,
}  # fmt: skip
DATA_SETS = (
    DataSet("stage2", 30000, MULTI_TASK),
    DataSet("stage2-held", 320, MULTI_TASK),
    DataSet("stage3", 5000, {"chat": 1}),
    DataSet("stage3-held", 160, {"chat": 1}),
)


def ensure_data(out: Path, made: DataSet, seed: int = 0, progress: Progress | None = None) -> bool:
    """Writes `out`/<name>: shards, their indices and, last, manifest.json; False if it is there already, whole.

    The same data set and seed give the same bytes. Raises `FolderError` where nothing can be written.
    """
    from PIL import __version__ as pillow

    stated = f"{tuple(made)} {seed} {PER_SHARD} {source_digest(_SOURCES)} {pillow}"
    recipe = {"recipe": sha256(stated.encode()).hexdigest()}
    if _is_whole(out / made.name, recipe):
        return False
    prepare(out)
    sweep(out, made.name)
    jobs = [range(at, min(at + PER_SHARD, made.samples)) for at in range(0, made.samples, PER_SHARD)]
    entries: list[ShardEntry] = []
    with in_place_of(out / made.name) as work:
        # Spawned, not forked: the caller may hold threads (Arrow's, torch's).
        with get_context("spawn").Pool(min(os.cpu_count() or 1, len(jobs))) as pool:
            for entry in pool.imap(partial(_write_shard, work, made, seed), jobs):
                entries.append(entry)
                if progress:
                    progress(f"demo {made.name}", sum(each.nsamples for each in entries), made.samples)
        manifest = DatasetManifest(name=f"demo-{made.name}", fingerprints=recipe, shards=entries)
        write_manifest(Storage.open(str(work)), manifest)
    return True


def _is_whole(folder: Path, recipe: dict[str, str]) -> bool:
    try:
        manifest = read_manifest(Storage.open(str(folder)))
        whole = all((folder / shard.url).stat().st_size == shard.bytes for shard in manifest.shards)
    except (OSError, ManifestError):
        return False
    return whole and manifest.fingerprints == recipe


def _write_shard(folder: Path, made: DataSet, seed: int, numbers: range) -> ShardEntry:
    samples = []
    for number in numbers:
        rng = random.Random(f"{made.name}/{seed}/{number}")
        sample, _ = one = sample_of(rng.choices([*made.shares], [*made.shares.values()])[0], rng)
        images = zip(sample.images, draw_images(one), strict=True)
        samples.append((f"{number:06d}", [*images, ("json", dump_sample(sample))]))
    return write_shard(Storage.open(str(folder)), f"{numbers[0]:06d}.tar", samples)
