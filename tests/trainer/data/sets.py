"""Small data sets on a disk, and settings of runs over them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from demo.tasks import TASKS, draw_images, sample_of
from shards.schema import dump_sample
from tests.shards.packing import Sample
from tests.trainer.models import config as model_config
from tests.trainer.models import tokenizer
from trainer.config import TrainConfig, load_config
from trainer.data.loader import Loader, Micro

Keyed = tuple[str, tuple[int, ...]]


def samples(count: int, seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Sample]:
    """Samples of the demo's tasks by turns, drawn."""
    rng = random.Random(seed)
    made = [sample_of(tasks[number % len(tasks)], rng) for number in range(count)]
    return [
        (
            f"s{seed}-{number:05d}",
            [*zip(each.sample.images, draw_images(each), strict=True), ("json", dump_sample(each.sample))],
        )
        for number, each in enumerate(made)
    ]


def pairs(count: int, seed: int = 0) -> list[Sample]:
    """Curated pairs, as a run writes them: an image, its caption, and what is known of it."""
    rng = random.Random(f"pairs {seed}")
    made = [sample_of("caption", rng) for _ in range(count)]
    return [
        (
            f"p{seed}-{number:05d}",
            [
                ("jpg", draw_images(each)[0]),
                ("txt", each.sample.text.encode()),  # type: ignore[union-attr]
                ("json", json.dumps({"key": "k", "url": None, "caption_raw": "a", "scores": {}}).encode()),
            ],
        )
        for number, each in enumerate(made)
    ]


def cut(made: Sequence[Sample], sizes: Iterable[int]) -> list[list[Sample]]:
    """As shards of these sizes."""
    left = list(made)
    return [[left.pop(0) for _ in range(size)] for size in sizes]


def settings(stage: int, manifests: Sequence[Path | str], *overrides: str, **data: Any) -> TrainConfig:
    """A small run: 4 lanes, batches of 8, chunks of 4; overrides come last."""
    small = ("data.lanes=4", "data.chunk=4", "data.workers=0", "batch.size=8", "image_size=32", "batch.micro=2")
    given = {"data": {"manifests": [*map(str, manifests)], **data}}
    return load_config(stage, overrides=(*small, *overrides), **given)


def loader(config: TrainConfig, rank: int = 0, world: int = 1, step: int = 0, position: Any = None) -> Loader:
    return Loader(config, model_config(), tokenizer(), rank, world, step, position)


def streams(
    config: TrainConfig, world: int = 1, step: int = 0, position: Any = None, until: int | None = None
) -> list[list[list[Micro]]]:
    """Of each rank the micro-batches of each step."""
    found = []
    for rank in range(world):
        mine: list[list[Micro]] = []
        for micro in loader(config, rank, world, step, position):
            if not mine or mine[-1][-1].last:
                if until is not None and micro.step == until:
                    break
                mine.append([])
            mine[-1].append(micro)
        found.append(mine)
    return found
