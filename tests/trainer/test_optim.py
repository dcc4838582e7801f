from __future__ import annotations

import copy
import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer import models
from trainer.config import Optim, load_config
from trainer.model.config import QWEN_VL
from trainer.model.vlm import VisionLanguageModel, build_model, set_trainable
from trainer.optim import NO_DECAY, build_optimizer, lr_at, module_norms, parameter_groups, set_lr, update


@pytest.fixture(scope="module")
def qwen() -> VisionLanguageModel:
    return build_model(QWEN_VL, "meta")


# Table 8 (appendix C) by hand: stage, step (0-based), learning rate.
@pytest.mark.parametrize(
    ("stage", "step", "lr"),
    [
        (1, 0, 2e-4 / 500),
        (1, 499, 2e-4),
        (1, 500, 2e-4),
        (1, (500 + 50_000) // 2, (2e-4 + 1e-6) / 2),
        (1, 49_999, 1e-6),
        (2, 0, 5e-5 / 400),
        (2, 199, 2.5e-5),
        (2, 399, 5e-5),
        (2, (400 + 19_000) // 2, (5e-5 + 1e-5) / 2),
        (2, 18_999, 1e-5),
        (3, 0, 1e-5 / 3000),
        (3, 2_999, 1e-5),
        (3, (3000 + 8000) // 2, (1e-5 + 1e-6) / 2),
        (3, 7_999, 1e-6),
    ],
)
def test_the_learning_rate_is_the_papers(stage: int, step: int, lr: float) -> None:
    config = load_config(stage)
    assert config.steps is not None
    assert lr_at(step, config.optim, config.steps) == pytest.approx(lr, rel=1e-5)


@given(st.integers(0, 50), st.integers(1, 200))
def test_the_learning_rate_rises_then_falls_and_ends_at_the_minimum(warmup: int, total: int) -> None:
    optim = Optim(lr=1.0, min_lr=0.1, warmup=warmup)
    rates = [lr_at(step, optim, total) for step in range(total)]
    top = min(warmup, total)
    assert all(0 < low < high for low, high in pairwise(rates[:top]))
    assert all(high >= low >= 0.1 for high, low in pairwise(rates[top:]))
    if total > warmup:
        assert rates[top] == 1.0
    else:  # it is still warming up
        assert rates[-1] == total / warmup
    assert lr_at(max(total, warmup), optim, total) == pytest.approx(0.1 if total > warmup else 1.0)


@pytest.mark.parametrize(
    ("stage", "scales"),
    [
        (
            1,
            {
                "vision.conv1.weight": 0.95**49,
                "vision.positional_embedding": 0.95**49,
                "vision.ln_pre.bias": 0.95**49,
                "vision.transformer.resblocks.0.attn.in_proj_weight": 0.95**48,
                "vision.transformer.resblocks.9.ln_1.weight": 0.95**39,
                "vision.transformer.resblocks.47.mlp.c_fc.weight": 0.95**1,
                "adapter.query": 1.0,
                "adapter.kv_proj.weight": 1.0,
                "projection.ln_post.weight": 1.0,
                "projection.proj": 1.0,
                "language.lm_head.weight": None,
            },
        ),
        (
            2,
            {
                "vision.conv1.weight": 0.95**49,
                "vision.transformer.resblocks.10.ln_2.bias": 0.95**38,
                "language.lm_head.weight": 1.0,
                "language.model.layers.31.mlp.up_proj.weight": 1.0,
            },
        ),
        (
            3,
            {
                "vision.conv1.weight": None,
                "projection.proj": None,
                "adapter.query": 1.0,
                "language.lm_head.weight": 1.0,
            },
        ),
    ],
)
def test_the_tower_learns_slower_the_deeper(
    qwen: VisionLanguageModel, stage: int, scales: dict[str, float | None]
) -> None:
    config = load_config(stage)
    set_trainable(qwen, config.trains, config.projection_with)
    groups = parameter_groups(qwen, config.optim)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    found = {name: of[id(each)]["scale"] if id(each) in of else None for name, each in qwen.named_parameters()}
    for name, scale in scales.items():
        assert found[name] == (scale if scale is None else pytest.approx(scale, rel=1e-12)), name
    # Each that trains once, and none that does not.
    claimed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == {id(each) for each in qwen.parameters() if each.requires_grad}
    assert len({group["name"] for group in groups}) == len(groups) == (2 if stage == 3 else 100)
    for name, each in qwen.named_parameters():
        if id(each) in of:
            exempt = each.ndim == 1 or name in ("vision.positional_embedding", "adapter.query")
            assert of[id(each)]["weight_decay"] == (0 if exempt else 0.05), name
    assert {*NO_DECAY} <= {name for name, _ in qwen.named_parameters()}


def test_the_eyes_have_their_own_factor_times_the_layer_decay() -> None:
    model = models.model()
    optim = OPTIM.model_copy(update={"eyes": 3.0})
    groups = parameter_groups(model, optim)
    of = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    found = {name: of[id(each)] for name, each in model.named_parameters()}
    for name, scale in {
        "vision.conv1.weight": 3 * 0.9**3,  # two blocks, and what is before them
        "vision.transformer.resblocks.0.ln_1.weight": 3 * 0.9**2,
        "vision.transformer.resblocks.1.ln_1.weight": 3 * 0.9,
        "adapter.query": 3.0,
        "projection.ln_post.weight": 3.0,
        "projection.proj": 3.0,
    }.items():
        assert found[name] == pytest.approx(scale, rel=1e-12), name
    assert {scale for name, scale in found.items() if name.startswith("language.")} == {1.0}
    assert load_config(1).optim.eyes == load_config(2).optim.eyes == load_config(3).optim.eyes == 1.0


def test_the_minimum_is_scaled_too(qwen: VisionLanguageModel) -> None:
    model, optim = models.model(), load_config(1).optim
    optimizer = build_optimizer(model, optim)
    set_lr(optimizer, lr_at(50_000, optim, 50_000))
    rates = {group["scale"]: group["lr"] for group in optimizer.param_groups}
    assert rates[1.0] == pytest.approx(1e-6)
    assert rates[min(rates)] == pytest.approx(1e-6 * 0.95**3)  # two blocks, and what is before them


OPTIM = Optim(lr=1e-2, min_lr=1e-3, warmup=1, layer_decay=0.9, weight_decay=0.1, clip=1.0)


def batch_loss(model: nn.Module, seed: int) -> Tensor:
    rng = random.Random(seed)
    batch = models.packed([models.sample(rng, 1, 12), models.sample(rng, 0, 20)], models.pictures(1, seed=seed))
    losses: Tensor = model(batch)
    return losses


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_an_update_is_adamw_on_the_clipped_mean(clip: float) -> None:
    ours, theirs = models.model(), models.model()
    optimizer = build_optimizer(ours, OPTIM)
    groups: Any = [{**group, "lr": group["scale"] * OPTIM.lr} for group in parameter_groups(theirs, OPTIM)]
    plain = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps, foreach=False)
    for seed in range(4):
        losses = batch_loss(ours, seed)
        losses.sum().backward()
        tokens = torch.tensor(float(len(losses)))
        parts = module_norms(ours, tokens)
        # The same gradients: those that are 0 but for rounding would be made large by AdamW, each in its own way.
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad / tokens
        norm = update(ours, optimizer, tokens, clip)
        optimizer.zero_grad()
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        plain.step()
        plain.zero_grad()
        assert norm.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert math.hypot(*(each.item() for each in parts.values())) == pytest.approx(norm.item(), rel=1e-5)
        assert [*parts] == ["vision", "adapter", "projection", "language"]
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)


def test_division_and_clip_are_the_kernels_to_the_bit() -> None:
    """One token and nothing to clip: fused AdamW itself."""
    ours, theirs = models.model(), models.model()
    optimizer, plain = build_optimizer(ours, OPTIM), build_optimizer(theirs, OPTIM)
    for seed in range(3):
        batch_loss(ours, seed).sum().backward()
        update(ours, optimizer, torch.tensor(1.0), 1e9)
        optimizer.zero_grad()
        batch_loss(theirs, seed).sum().backward()
        plain.step()
        plain.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("poison", "tokens"), [(torch.nan, 9.0), (torch.inf, 9.0), (-torch.inf, 9.0), (3e38, 9.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_step_without_a_number_changes_nothing(poison: float, tokens: float, first: bool) -> None:
    model = models.model()
    optimizer = build_optimizer(model, OPTIM)
    if not first:
        losses = batch_loss(model, 0)
        losses.sum().backward()
        update(model, optimizer, torch.tensor(float(len(losses))), 1.0)
        optimizer.zero_grad()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    batch_loss(model, 1).sum().backward()
    assert model.adapter.query.grad is not None
    model.adapter.query.grad[0, 0] = poison
    norm = update(model, optimizer, torch.tensor(tokens), 1.0)
    assert bool(norm.isfinite()) == (tokens == 0)
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in model.state_dict().items())
    steps = 0.0 if first else 1.0
    for number, state in optimizer.state_dict()["state"].items():
        assert state["step"] == steps
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key], torch.zeros(()).expand_as(state[key]) if first else before[1][number][key])
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")
    # It goes on after it.
    optimizer.zero_grad()
    batch_loss(model, 2).sum().backward()
    assert update(model, optimizer, torch.tensor(9.0), 1.0).isfinite()
    assert not torch.equal(model.adapter.query, before[0]["adapter.query"])


def test_what_is_frozen_has_no_group_and_no_norm() -> None:
    model = models.model()
    set_trainable(model, ("adapter", "language"))
    batch_loss(model, 0).sum().backward()
    assert [*module_norms(model, torch.tensor(5.0))] == ["adapter", "language"]
    optimizer = build_optimizer(model, OPTIM)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        each.requires_grad for each in model.parameters()
    )
    assert {group["scale"] for group in optimizer.param_groups} == {1.0}
