"""What a model costs before anything is allocated: parameters, what trains in each stage, bytes, FLOPs.

The one decision: parameters are counted on the real modules, built on the meta device; FLOPs are reckoned in the open
from shapes. A multiply-add is 2 FLOPs. What is frozen costs 1 x its forward where no gradient passes, 2 x where one
does; what trains costs 3 x.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import exit_status

if TYPE_CHECKING:
    from trainer.model.config import ModelConfig

# fp32 weight, gradient and the two moments of AdamW; frozen weights are kept in bf16.
TRAINED_BYTES, FROZEN_BYTES = 16, 2


@dataclass(frozen=True)
class Stage:
    """scale: the image's side over the side of the position table; length: tokens; trains: modules."""

    number: int
    scale: int
    length: int
    trains: frozenset[str]


# The paper's stages: 224 px and 512 tokens, then 448 px and 2048 (Table 8).
STAGES = (
    Stage(1, 1, 512, frozenset({"vision", "adapter"})),
    Stage(2, 2, 2048, frozenset({"vision", "adapter", "language"})),
    Stage(3, 2, 2048, frozenset({"adapter", "language"})),
)


@dataclass(frozen=True)
class Cost:
    """One stage. `state_bytes`: weights, gradients and moments, all GPUs together. FLOPs of one image and one token.

    `token_flops`: the mean over a segment of `length` tokens, image placeholders among them.
    """

    stage: int
    image_size: int
    length: int
    trains: dict[str, bool]
    trained: int
    frozen: int
    state_bytes: int
    image_flops_forward: int
    image_flops: int
    token_flops_forward: int
    token_flops: int


def count(config: ModelConfig) -> dict[str, int]:
    """Entries of each module, on the meta device; `positions`: the adapter's fixed table. Raises `ModelError`."""
    from trainer.model.vlm import build_model

    model = build_model(config, "meta")
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {**parts, "positions": model.adapter.pos_embed.numel()}


def image_flops(config: ModelConfig, size: int) -> dict[str, int]:
    """FLOPs of the forward of one image of `size` px, by module. Softmax, norms and activations are left out."""
    vision, width, queries = config.vision, config.width, config.adapter.queries
    patches, wide = vision.grid(size) ** 2, vision.width
    mlp = int(wide * vision.mlp_ratio)
    # in_proj 3W², out_proj W², MLP 2 x W x mlp; scores and their sum over the values: T² x W each.
    block = 2 * patches * (4 * wide**2 + 2 * wide * mlp) + 4 * patches**2 * wide
    tower = 2 * patches * 3 * vision.patch_size**2 * wide + vision.layers * block
    keys = 2 * patches * (wide * width + 2 * width**2)
    asked = 2 * queries * 2 * width**2 + 4 * queries * patches * width
    return {"vision": tower, "adapter": keys + asked, "projection": 2 * queries * width**2}


def token_flops(config: ModelConfig, length: int, parameters: int) -> int:
    """FLOPs of the forward of one token of the language model, the mean over a causal segment of `length` tokens.

    parameters: of the language model. The head is reckoned for every token, the look-up of the embedding is free.
    """
    from transformers import AutoConfig

    read = AutoConfig.for_model(**deepcopy(config.language))  # with what is left to the family's defaults
    multiplied = parameters if read.tie_word_embeddings else parameters - read.vocab_size * config.width
    wide = read.num_attention_heads * (getattr(read, "head_dim", None) or config.width // read.num_attention_heads)
    # Each token sees (length + 1) / 2 on average; scores and sum are 2 FLOPs a channel each.
    return int(2 * multiplied + read.num_hidden_layers * 2 * (length + 1) * wide)


def costs(config: ModelConfig, projection_with: str = "vision", parts: dict[str, int] | None = None) -> list[Cost]:
    """The three stages. projection_with: as in `set_trainable`; parts: what `count` gave, where it has been asked."""
    parts = parts or count(config)
    found = []
    for stage in STAGES:
        trains = {name: name in stage.trains for name in ("vision", "adapter", "language")}
        trains["projection"] = projection_with in stage.trains
        size = stage.scale * config.vision.image_size
        images = image_flops(config, size)
        tokens = token_flops(config, stage.length, parts["language"])
        # Gradients go down to the adapter in every stage; below the tower there is nothing to train.
        passes = {"vision": 3 if trains["vision"] else 1}
        passes |= {name: 3 if trains[name] else 2 for name in ("adapter", "projection", "language")}
        trained = sum(parts[name] for name, yes in trains.items() if yes)
        frozen = sum(parts.values()) - trained
        cost = Cost(
            stage.number,
            size,
            stage.length,
            trains,
            trained,
            frozen,
            TRAINED_BYTES * trained + FROZEN_BYTES * frozen,
            sum(images.values()),
            sum(passes[name] * flops for name, flops in images.items()),
            tokens,
            passes["language"] * tokens,
        )
        found.append(cost)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.plan",
        description="Parameters, what trains per stage, bytes and FLOPs of a model; nothing is allocated.",
        epilog="example:\n  python -m trainer.plan qwen-vl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", metavar="MODEL", help="qwen-vl, tiny, or a model folder")
    made.add_argument(
        "--projection-with",
        choices=["vision", "adapter"],
        default="vision",
        help="what ln_post and proj are frozen with; default: %(default)s, as released",
    )
    made.add_argument("--json", action="store_true", help="prints JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: _plan(options))


def _plan(options: argparse.Namespace) -> None:
    config = _config(options.model)
    parts = count(config)
    found = costs(config, options.projection_with, parts)
    if options.json:
        text = json.dumps({"parameters": parts, "stages": [asdict(cost) for cost in found]}, indent=2)
    else:
        text = "\n".join(_lines(config.name, parts, found))
    sys.stdout.write(f"{text}\n")


def _config(name: str) -> ModelConfig:
    from trainer.model.config import QWEN_VL, tiny
    from trainer.model.folder import load_config

    if name == "tiny":
        return tiny(4096, 4095, 0)
    return QWEN_VL if name == "qwen-vl" else load_config(Path(name))


def _lines(name: str, parts: dict[str, int], found: list[Cost]) -> list[str]:
    total = sum(parts.values())
    lines = [f"{name}: {total:,} entries, {2 * total / 1e9:,.2f} GB in bf16", ""]
    lines += [f"  {part:<12}{number:>16,}" for part, number in parts.items()]
    rows: list[tuple[str, Any]] = [
        ("image", lambda cost: f"{cost.image_size} px"),
        ("tokens", lambda cost: f"{cost.length:,}"),
        ("trains", lambda cost: ", ".join(part for part, yes in cost.trains.items() if yes)),
        ("trained", lambda cost: f"{cost.trained:,}"),
        ("frozen", lambda cost: f"{cost.frozen:,}"),
        ("weights, gradients, moments", lambda cost: f"{cost.state_bytes / 2**30:,.2f} GiB"),
        ("an image, forward", lambda cost: f"{cost.image_flops_forward / 1e9:,.2f} GFLOP"),
        ("an image, training", lambda cost: f"{cost.image_flops / 1e9:,.2f} GFLOP"),
        ("a token, forward", lambda cost: f"{cost.token_flops_forward / 1e9:,.3f} GFLOP"),
        ("a token, training", lambda cost: f"{cost.token_flops / 1e9:,.3f} GFLOP"),
    ]
    for cost in found:
        lines += ["", f"stage {cost.stage}", *(f"  {label:<30}{value(cost)}" for label, value in rows)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
