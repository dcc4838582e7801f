"""Small real runs: drawn samples in shards, a model folder, the training command in this process or on several ranks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.tasks import draw_images, sample_of
from shards.index import write_shard
from shards.manifest import DatasetManifest, write_manifest
from shards.schema import dump_sample
from shards.storage import Storage
from tests.trainer.models import model, save_model, tokenizer

PER_SHARD = 12
TASKS = {1: ("caption",), 2: ("caption", "vqa", "refer", "text", "ocr"), 3: ("chat",)}
SMALL = (
    "image_size=32",
    "steps=6",
    "data.lanes=4",
    "data.length=1024",
    "data.chunk=5",
    "data.bins=3",
    "data.workers=0",
    "batch.size=8",
    "batch.micro=2",
    "optim.lr=1e-3",
    "optim.warmup=2",
    "parallel.precision=float32",
    "log.every=1",
    "log.preempt=1",
    "log.tensorboard=false",
)


def data_set(folder: Path, tasks: Sequence[str], count: int, seed: int = 0) -> Path:
    """`count` drawn samples of the tasks in turn, 12 a shard."""
    storage, entries = Storage.open(str(folder)), []
    for first in range(0, count, PER_SHARD):
        samples = []
        for number in range(first, min(count, first + PER_SHARD)):
            made = sample_of(tasks[number % len(tasks)], random.Random(f"{seed}/{number}"))
            images = zip(made.sample.images, draw_images(made), strict=True)
            samples.append((f"{number:05d}", [*images, ("json", dump_sample(made.sample))]))
        entries.append(write_shard(storage, f"{first // PER_SHARD:03d}.tar", samples))
    write_manifest(storage, DatasetManifest(name=folder.name, shards=entries))
    return folder


def model_folder(folder: Path, seed: int = 0) -> Path:
    """A complete folder of the small model."""
    save_model(model(seed), tokenizer(), folder)
    return folder


def command(stage: int, data: Path, init_from: Path, out: Path, *overrides: str) -> list[str]:
    """Arguments of a small run."""
    named = ["--stage", str(stage), "--data", str(data), "--init-from", str(init_from), "--out", str(out)]
    return [*named, *SMALL, *overrides]


def start(arguments: Sequence[str], ranks: int = 1) -> subprocess.Popen[str]:
    """The command as a process of its own, or as several under torchrun, one thread each."""
    run = [sys.executable, "-m"]
    if ranks > 1:
        run += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*run, "trainer.train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Exit status and standard error."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def lines(out: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """The loss of each step."""
    return {int(line["step"]): line["loss"] for line in lines(out) if "loss" in line}
