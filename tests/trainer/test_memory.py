"""The simulation of memory against what can be reckoned by hand on a small model."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.shards.packing import dataset
from tests.trainer.data.sets import cut, loader, pairs, settings
from tests.trainer.models import config
from trainer.config import TrainConfig, load_config
from trainer.errors import ConfigError
from trainer.memory import Memory, Work, _simulate, share, simulate
from trainer.model.config import QWEN_VL
from trainer.model.vlm import build_model, set_trainable

SMALL = ("image_size=32", "data.length=128", "batch.micro=2")


def run(stage: int, *overrides: str) -> TrainConfig:
    return load_config(stage, (), (*SMALL, *overrides))


@pytest.fixture(scope="module")
def simulated() -> list[tuple[Work, Memory]]:
    works = [
        Work(config(), run(1), gpus=4, items=2, forwards=1),
        Work(config(), run(1, "parallel.shard=2"), gpus=4, items=6, forwards=2),
    ]
    found = simulate(works)
    assert not dist.is_initialized()  # nothing of the fake group is left here
    return list(zip(works, found, strict=True))


def rows_of_a_rank(work: Work) -> tuple[int, int, int]:
    """Entries that rank 0 has of what trains and of what is frozen, and the bytes of tables that all have."""
    model = build_model(work.model, "meta")
    set_trainable(model, work.run.trains, work.run.projection_with)
    shards, found = work.run.parallel.shard or work.gpus, [0, 0]
    for parameter in model.parameters():
        rows = math.ceil(parameter.shape[0] / shards)
        found[not parameter.requires_grad] += rows * (parameter.numel() // parameter.shape[0])
    return found[0], found[1], sum(each.nbytes for each in model.buffers())


@pytest.mark.slow
def test_state_is_what_a_rank_holds(simulated: list[tuple[Work, Memory]]) -> None:
    for work, memory in simulated:
        trained, frozen, tables = rows_of_a_rank(work)
        assert frozen > 0
        assert memory.weights == 4 * trained + 2 * frozen + tables
        assert memory.moments == 8 * trained
        if work.forwards > 1:
            assert memory.gradients == 4 * trained  # sums of the forwards before
        else:
            assert memory.gradients < 4 * trained
        assert memory.peak == sum(vars(memory).values())


@pytest.mark.slow
def test_activations_are_those_of_the_micro_batch(simulated: list[tuple[Work, Memory]]) -> None:
    (two, a), (six, b) = simulated
    tokens, images = two.run.data.length, two.run.data.most_images(config().adapter.queries)
    assert (tokens, images) == (128, 7)
    assert 2 * a.activations < b.activations < 3.5 * a.activations
    # Of each of 2 blocks at the least: input, two norms, q, k, v, what is seen, gate, up and their product; bf16.
    assert a.activations > 2 * two.items * tokens * 2 * (7 * 64 + 3 * 96)
    assert a.gathered > 0
    assert six.gpus == two.gpus


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 8, 100])
@pytest.mark.parametrize("gpus", [1, 2, 3, 4])
def test_work_is_what_the_loader_deals_out(tmp_path: Path, gpus: int, micro: int) -> None:
    folder = Path(dataset(tmp_path, cut(pairs(8), [8])))
    made = settings(1, [folder], "batch.size=16", f"batch.micro={micro}", "steps=1")
    dealt = loader(made, 0, gpus)
    found = share(config(), made, gpus)
    assert found.items == dealt.together * dealt.part
    assert found.forwards == len(list(dealt))
    assert made.data.most_images(config().adapter.queries) == dealt.images


def test_gpus_beyond_lanes_are_not_counted() -> None:
    assert share(QWEN_VL, load_config(3), 512).gpus == 128


def test_what_cannot_be_simulated_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^parallel.shard 3 does not divide 64 ranks: name a divisor"):
        share(QWEN_VL, load_config(2, (), ("parallel.shard=3",)), 64)
    monkeypatch.setitem(sys.modules, "torch.distributed._tools.fsdp2_mem_tracker", None)
    with pytest.raises(ConfigError, match=r"^torch .* has no FSDPMemTracker"):
        _simulate(Work(config(), run(2), 4, 1, 1))
