"""AdamW as the paper sets it: whose learning rate is scaled by what, how it runs, and one step of it.

The one decision: nothing is read back from the device. The kernel itself divides the gradients, clips them, and leaves
everything as it was where their norm is no finite number; the loop learns of it when it writes its next line.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.config import Optim
from trainer.model.vlm import VisionLanguageModel

_BLOCK = re.compile(r"vision\.transformer\.resblocks\.(\d+)\.")
# Tables that are added or asked with, not multiplied by; everything of one dimension (biases, norms) is excluded too.
NO_DECAY = ("vision.positional_embedding", "adapter.query")


def parameter_groups(model: VisionLanguageModel, optim: Optim) -> list[dict[str, Any]]:
    """What trains, each parameter once: groups of `name`, `scale` of the learning rate, `weight_decay` and `params`.

    Layer decay d (open_clip's and BEiT's): block i of n of the tower has scale d^(n - i), what is before block 0
    d^(n + 1); adapter, ln_post and proj have 1. These and the tower are the eyes: `optim.eyes` times that; the language
    model has 1. No weight decay: biases, norms (one dimension), the table of positions, the adapter's queries. The
    embeddings do decay, as in Qwen's own code (transformers' rule).
    """
    layers = model.config.vision.layers
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():  # tied ones come once
        if not parameter.requires_grad:
            continue
        block = _BLOCK.match(name)
        power = layers - int(block[1]) if block else layers + 1 if name.startswith("vision.") else 0
        scale = optim.layer_decay**power * (1.0 if name.startswith("language.") else optim.eyes)
        decays = parameter.ndim > 1 and name not in NO_DECAY
        key = f"lr x {scale:.6g}{'' if decays else ', no decay'}"
        empty = {"name": key, "scale": scale, "weight_decay": optim.weight_decay * decays, "params": []}
        groups.setdefault(key, empty)["params"].append(parameter)
    return [*groups.values()]


def build_optimizer(model: VisionLanguageModel, optim: Optim) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, at the peak until `set_lr` says otherwise; fused, which `update` rests on."""
    groups = parameter_groups(model, optim)
    optimizer = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=True)
    set_lr(optimizer, optim.lr)
    return optimizer


def lr_at(step: int, optim: Optim, total: int) -> float:
    """The learning rate of scale 1 in step `step` (0-based) of `total`.

    Warm-up: lr x (step + 1) / warmup, so that no step is lost; then a cosine from lr at `warmup` to min_lr at `total`,
    where nobody arrives. A run that is not longer than its warm-up never leaves it.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, total - optim.warmup)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Every group's learning rate: the minimum, as part of `lr`, is scaled with it."""
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * lr


def update(model: VisionLanguageModel, optimizer: torch.optim.AdamW, tokens: Tensor, clip: float) -> Tensor:
    """One step; gives the norm of the gradient before clipping, on the device.

    Gradients are sums over `tokens` supervised tokens, those of all ranks; they are divided by that and clipped to
    `clip` on the way, and are spoilt after it. Where the norm is NaN or infinite, or there was no token, nothing
    changes: no weight, no moment, no count of steps.
    """
    count = tokens.clamp(min=1)
    norm = _norm(model) / count
    given: Any = optimizer
    given.grad_scale = count * (norm / clip).clamp(min=1)
    given.found_inf = (~norm.isfinite() | (tokens < 1)).to(norm)
    optimizer.step()
    # Not part of its state: what steps next, as DCP does to fill a fresh one, shall not find them.
    del given.grad_scale, given.found_inf
    return norm


def module_norms(model: VisionLanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """The norm of the gradient of each part that trains, as `update` divides it; to be called before `update`."""
    trains = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: _norm(part) / tokens.clamp(min=1) for name, part in model.named_children() if name in trains}


def _norm(module: nn.Module) -> Tensor:
    """Of the gradient, fp32 []; over all ranks that share a copy: one small all-reduce."""
    norm = nn.utils.get_total_norm([each.grad for each in module.parameters() if each.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
