"""The published Qwen-VL computation once more, as plain functions on a dict of tensors: what ours is measured against.

The one decision: nothing here comes from `trainer/`, from transformers or from open_clip. Names, shapes and formulas
are those of the published code (`visual.py`, `modeling_qwen.py` and `config.json` of `Qwen/Qwen-VL`), written for
reading, slow, and in the released layout: fused `c_attn`, `w1`/`w2`, the tower's `in_proj` rows per head. A mistake in
our modules or in our import has to be made a second time here, in another layout, to go unseen.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

EPS = 1e-6  # of every norm, in the tower as in the language model
TABLE = 256  # rows of the tower's position table and of the adapter's: 16 x 16, whatever the image's size

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """The sizes of a model in the released layout; without arguments those of Qwen-VL itself."""

    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    mlp: int = 11008  # `intermediate_size` of the released configuration is twice this
    vocab: int = 151_936
    image_start_id: int = 151_857  # `<img>`; `</img>` is the next id
    tower_width: int = 1664
    tower_layers: int = 48
    tower_heads: int = 16
    mlp_ratio: float = 4.9231
    patch: int = 14


def small_config() -> Config:
    """1.7 million entries under every rule of the large model, so 256 queries and adapter heads 128 wide.

    Only its ids are its own: an import, which reads Qwen's vocabulary, needs `vocab` and `image_start_id` of the large.
    """
    return Config(256, 2, 4, 176, 512, 470, tower_width=48, tower_layers=3, tower_heads=4)


def released_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every entry of a released checkpoint."""
    c, d, w = config, config.hidden, config.tower_width
    fc = int(w * c.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (c.vocab, d)}
    for layer in range(c.layers):
        at = f"transformer.h.{layer}."
        shapes |= {f"{at}ln_1.weight": (d,), f"{at}ln_2.weight": (d,)}
        shapes |= {f"{at}attn.c_attn.weight": (3 * d, d), f"{at}attn.c_attn.bias": (3 * d,)}
        shapes |= {f"{at}attn.c_proj.weight": (d, d), f"{at}mlp.c_proj.weight": (d, c.mlp)}
        shapes |= {f"{at}mlp.w1.weight": (c.mlp, d), f"{at}mlp.w2.weight": (c.mlp, d)}
    shapes |= {"transformer.ln_f.weight": (d,), "lm_head.weight": (c.vocab, d)}

    v = "transformer.visual."
    shapes |= {f"{v}conv1.weight": (w, 3, c.patch, c.patch), f"{v}positional_embedding": (TABLE, w)}
    shapes |= {f"{v}proj": (d, d), f"{v}attn_pool.query": (TABLE, d), f"{v}attn_pool.pos_embed": (TABLE, d)}
    shapes |= {f"{v}attn_pool.kv_proj.weight": (d, w)}
    shapes |= {f"{v}attn_pool.attn.in_proj_weight": (3 * d, d), f"{v}attn_pool.attn.in_proj_bias": (3 * d,)}
    norms = {"ln_pre": w, "ln_post": d, "attn_pool.ln_q": d, "attn_pool.ln_kv": d}
    linears = {"attn_pool.attn.out_proj": (d, d)}
    for block in range(c.tower_layers):
        at = f"transformer.resblocks.{block}."
        norms |= {f"{at}ln_1": w, f"{at}ln_2": w}
        linears |= {f"{at}attn.in_proj": (3 * w, w), f"{at}attn.out_proj": (w, w)}
        linears |= {f"{at}mlp.c_fc": (fc, w), f"{at}mlp.c_proj": (w, fc)}
    shapes |= {f"{v}{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    shapes |= {f"{v}{name}.weight": shape for name, shape in linears.items()}
    return shapes | {f"{v}{name}.bias": shape[:1] for name, shape in linears.items()}


def random_released(config: Config, seed: int) -> Weights:
    """A random fp32 checkpoint in the released layout, no term of it trivial: logits are about 1, attention is uneven.

    Norm weights are not 1, biases not 0, both tables noise. What comes before a norm is 0.02: there its eps shows.
    """
    low = ("wte.weight", "conv1.weight", "positional_embedding", "query", "kv_proj.weight", "visual.proj")
    draw, weights = torch.Generator().manual_seed(seed), Weights()
    for name, shape in released_shapes(config).items():
        rows = name.endswith(("wte.weight", "positional_embedding", "query", "pos_embed"))  # else applied to something
        size = 0.3 if len(shape) == 1 else 1.0 if rows else math.prod(shape[1:]) ** -0.5
        size *= 0.02 if name.endswith(low) or "attn_pool.attn.out_proj" in name else 1.0
        noise = size * torch.randn(shape, generator=draw)
        weights[name] = 1 + noise if "ln_" in name and name.endswith("weight") else noise
    return weights


def released_config(config: Config) -> dict[str, Any]:
    """The `config.json` beside such a checkpoint."""
    visual: dict[str, Any] = {"heads": config.tower_heads, "image_size": 448, "image_start_id": config.image_start_id}
    visual |= {"layers": config.tower_layers, "mlp_ratio": config.mlp_ratio, "output_dim": config.hidden}
    visual |= {"patch_size": config.patch, "width": config.tower_width}
    language: dict[str, Any] = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "vocab_size": config.vocab}
    language |= {"hidden_size": config.hidden, "intermediate_size": 2 * config.mlp, "no_bias": True, "bf16": True}
    language |= {"num_hidden_layers": config.layers, "num_attention_heads": config.heads, "layer_norm_epsilon": EPS}
    language |= {"kv_channels": config.hidden // config.heads, "rotary_emb_base": 10000, "rotary_pct": 1.0}
    language |= {"seq_length": 2048, "max_position_embeddings": 8192, "tie_word_embeddings": False}
    return {**language, "use_dynamic_ntk": True, "use_logn_attn": True, "initializer_range": 0.02, "visual": visual}


def save_released(w: Weights, config: Config, folder: Path, *, kind: str = "safetensors", shards: int = 2) -> None:
    """As published: config.json, `shards` files of the kind (or "bin") and their index; no vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released_config(config), indent=2))
    stem = "model" if kind == "safetensors" else "pytorch_model"
    size = math.ceil(len(w) / shards)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{kind}"
        part = dict(list(w.items())[shard * size : (shard + 1) * size])
        (torch.save if kind == "bin" else save_file)(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in w.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def resized(table: Tensor, rows: int) -> Tensor:
    """A position table [n, D] for another grid: [rows, D], bicubic, corners not aligned."""
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    if old == new:
        return table
    image = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(rows, -1).to(table.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k / sqrt(width)) v on [N, heads, positions, width] -> [N, positions, heads * width]."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def split(x: Tensor, heads: int) -> Tensor:
    """[N, positions, heads * width] -> [N, heads, positions, width]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def layer_norm(w: Weights, at: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], EPS)


def linear(w: Weights, at: str, x: Tensor) -> Tensor:
    y = x @ w[f"{at}.weight"].T
    return y + w[f"{at}.bias"] if f"{at}.bias" in w else y


def tower_attention(w: Weights, at: str, x: Tensor, heads: int) -> Tensor:
    """Every patch to every patch; the rows of `in_proj` are [head][q|k|v][width of a head]."""
    q, k, v = split(linear(w, f"{at}.in_proj", x), heads).chunk(3, -1)
    return linear(w, f"{at}.out_proj", attend(q, k, v))


def attn_pool(w: Weights, at: str, x: Tensor) -> Tensor:
    """Patches [N, patches, W] -> [N, 256, D]: positions on queries and keys, none on values; heads 128 wide."""
    table = w[f"{at}.pos_embed"]
    kv = layer_norm(w, f"{at}.ln_kv", linear(w, f"{at}.kv_proj", x))
    q = layer_norm(w, f"{at}.ln_q", w[f"{at}.query"]) + table
    inputs = q.expand(len(x), -1, -1), kv + resized(table, x.shape[1]), kv
    rows, biases = w[f"{at}.attn.in_proj_weight"].chunk(3), w[f"{at}.attn.in_proj_bias"].chunk(3)
    q, k, v = (split(y @ row.T + bias, y.shape[-1] // 128) for y, row, bias in zip(inputs, rows, biases, strict=True))
    return linear(w, f"{at}.attn.out_proj", attend(q, k, v))


def visual(w: Weights, pixels: Tensor, config: Config) -> Tensor:
    """Pixels [N, 3, S, S] -> image embeddings [N, 256, D]."""
    v = "transformer.visual"
    x = F.conv2d(pixels, w[f"{v}.conv1.weight"], stride=config.patch).flatten(2).transpose(1, 2)
    x = layer_norm(w, f"{v}.ln_pre", x + resized(w[f"{v}.positional_embedding"], x.shape[1]))
    for block in range(config.tower_layers):
        at = f"{v}.transformer.resblocks.{block}"
        x = x + tower_attention(w, f"{at}.attn", layer_norm(w, f"{at}.ln_1", x), config.tower_heads)
        x = x + linear(w, f"{at}.mlp.c_proj", F.gelu(linear(w, f"{at}.mlp.c_fc", layer_norm(w, f"{at}.ln_2", x))))
    return layer_norm(w, f"{v}.ln_post", attn_pool(w, f"{v}.attn_pool", x)) @ w[f"{v}.proj"]


def rms_norm(w: Weights, at: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w[f"{at}.weight"]


def rotated(x: Tensor) -> Tensor:
    """Rotary positions on [N, heads, T, width]: channel i turns with channel i + width / 2, base 10000, fp32 angles."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2]).float()[:, None] * 10000 ** -(torch.arange(half).float() / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def logits(w: Weights, ids: Tensor, pixels: Tensor | None, config: Config) -> Tensor:
    """Ids [B, T] and the images in the order of their tags -> [B, T, vocab]; T up to 2048.

    What stands between `<img>` and `</img>` is overwritten whatever its ids are; the tags keep their word embeddings.
    Raises ValueError where there are not as many images as tags, RuntimeError where 256 places are not.
    """
    x = w["transformer.wte.weight"][ids].clone()
    starts = (ids == config.image_start_id).nonzero().tolist()
    ends = (ids == config.image_start_id + 1).nonzero().tolist()
    images = [] if pixels is None else list(visual(w, pixels, config))
    for (row, start), (_, end), image in zip(starts, ends, images, strict=True):
        x[row, start + 1 : end] = image
    for layer in range(config.layers):
        at = f"transformer.h.{layer}"
        qkv = linear(w, f"{at}.attn.c_attn", rms_norm(w, f"{at}.ln_1", x))
        q, k, v = (split(part, config.heads) for part in qkv.chunk(3, -1))
        x = x + linear(w, f"{at}.attn.c_proj", attend(rotated(q), rotated(k), v, causal=True))
        y = rms_norm(w, f"{at}.ln_2", x)
        x = x + linear(w, f"{at}.mlp.c_proj", linear(w, f"{at}.mlp.w1", y) * F.silu(linear(w, f"{at}.mlp.w2", y)))
    return linear(w, "lm_head", rms_norm(w, "transformer.ln_f", x))
