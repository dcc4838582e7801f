"""The layouts of other houses as maps onto our names: the released Qwen-VL, Qwen-7B, open_clip and Hugging Face.

The one decision: a layout says for every tensor of the result which tensors of the source it is made of, and in which
shape they must be. So what is missing, unknown or of another size is known before a byte is written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trainer.errors import ModelError
from trainer.model.config import ENDS, QWEN_VL, ModelConfig, checked
from trainer.weights import Shape, Take

Shapes = Mapping[str, Shape]
# What may be left over: buffers that nobody needs, a head that is the embedding; of open_clip the text tower and what
# comes after the blocks.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
TIED_IGNORED = re.compile(rf"{IGNORED.pattern}|^lm_head\.weight$")
OPENCLIP_IGNORED = re.compile(r"^(?!visual\.)|^visual\.(class_embedding$|ln_post\.|proj$)")
# The released names and keys.
_THEIRS = yaml.safe_load(Path(__file__).with_name("released.yaml").read_text(encoding="utf-8"))
_COUNTS, _SIZES, _SAME, _FIXED = (_THEIRS[group] for group in ("counts", "sizes", "same", "fixed"))


def released_name(name: str) -> str:
    """The released name of a tensor of ours; q, k and v have the same. Raises `ModelError` for one that has none."""
    for pattern, replacement in _THEIRS["names"].items():
        changed, found = re.subn(pattern, replacement, name)
        if found:
            return changed
    raise ModelError(f"{name}: the released layout has no such tensor")


def part_major(rows: Tensor, heads: int) -> Tensor:
    """in_proj [3W, ...] with rows [head][q|k|v][W/heads], as released, to [q|k|v][head][W/heads], open_clip's order."""
    return rows.view(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def head_major(rows: Tensor, heads: int) -> Tensor:
    """The way back of `part_major`."""
    return rows.view(3, heads, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def from_released(wanted: Shapes, tower_heads: int = 1) -> dict[str, Take]:
    """Our tensors, of these names and shapes, from released ones: those of Qwen-VL, or of Qwen-7B alone."""
    takes = {}
    for name, shape in wanted.items():
        key = released_name(name)
        takes[name] = Take((key,), shape)
        if ".c_attn." in key:
            part = "qkv".index(name.split(".")[-2][0])
            takes[name] = Take((key,), (3 * shape[0], *shape[1:]), lambda rows, part=part: rows.chunk(3)[part])
        elif ".in_proj." in key:
            takes[name] = Take((key,), shape, lambda rows: part_major(rows, tower_heads))
    return takes


def to_released(ours: Shapes, tower_heads: int) -> dict[str, Take]:
    """The released tensors from ours, which come in the order of a state: q before k before v."""
    takes: dict[str, Take] = {}
    for name, shape in ours.items():
        key = released_name(name)
        if ".c_attn." in key:
            before = takes[key].keys if key in takes else ()
            takes[key] = Take((*before, name), shape, lambda *rows: torch.cat(rows))
        elif ".in_proj." in key:
            takes[key] = Take((name,), shape, lambda rows: head_major(rows, tower_heads))
        else:
            takes[key] = Take((name,), shape)
    return takes


def from_openclip(wanted: Shapes) -> dict[str, Take]:
    """Our tower from open_clip's: the first row of its table, the class token's, is dropped."""
    takes = {name: Take((name.replace("vision", "visual", 1),), shape) for name, shape in wanted.items()}
    table = "vision.positional_embedding"
    rows, width = wanted[table]
    return takes | {table: Take(takes[table].keys, (rows + 1, width), lambda rows: rows[1:])}


def from_transformers(wanted: Shapes) -> dict[str, Take]:
    """Our language model from a Hugging Face folder's: the same names."""
    return {name: Take((name.removeprefix("language."),), shape) for name, shape in wanted.items()}


def grown(takes: Mapping[str, Take], old: int, new: Collection[int] = ()) -> dict[str, Take]:
    """The same where the source's vocabulary has `old` rows; those that are missing become the mean of the old ones.

    new: rows that become it too where they are there: many tables are longer than their vocabulary.
    """
    longer = {}
    for name in ("language.model.embed_tokens.weight", "language.lm_head.weight"):
        if name in takes:
            rows, width = takes[name].shape
            longer[name] = Take(takes[name].keys, (old, width), lambda table, rows=rows: _longer(table, rows, new))
    return {**takes, **longer}


def _longer(table: Tensor, rows: int, new: Collection[int]) -> Tensor:
    inside = [row for row in new if row < len(table)]
    learnt = table.sum(0, dtype=torch.float32) - table[inside].sum(0, dtype=torch.float32)
    longer = table.new_empty(rows, table.shape[1])
    longer[: len(table)] = table
    longer[[*inside, *range(len(table), rows)]] = (learnt / (len(table) - len(inside))).to(table.dtype)
    return longer


def qwen_language(values: Mapping[str, Any], eos: int, where: str) -> dict[str, Any]:
    """Qwen-7B's config.json as one of Qwen2. Raises `ModelError` for a key that has no like there."""
    _whole(values, (*_COUNTS, "intermediate_size"), where)
    heads = values["num_attention_heads"]
    _only(values, {**_FIXED, "kv_channels": values["hidden_size"] // heads}, where)
    base = values.get("rotary_emb_base", 10000)
    if not isinstance(base, int | float):
        raise ModelError(f"{where}: rotary_emb_base is {base!r}: a number is needed")
    return {
        **QWEN_VL.language,
        **{key: values[key] for key in _COUNTS},
        **{ours: values[key] for key, ours in _SAME.items() if key in values},
        "num_key_value_heads": heads,
        "intermediate_size": values["intermediate_size"] // 2,  # it counts w1 and w2
        "rope_parameters": {"rope_type": "default", "rope_theta": float(base)},
        **dict.fromkeys(ENDS, eos),
    }


def from_released_config(
    values: Mapping[str, Any], shapes: Shapes, special: Mapping[str, int], where: str
) -> ModelConfig:
    """A released config.json as ours; the tables' shapes tell the grids. Raises `ModelError`."""
    visual = values.get("visual")
    if not isinstance(visual, dict):
        raise ModelError(f"{where}: visual is missing: of a Qwen-7B, `assemble --language` makes a model")
    language = qwen_language(values, special["eos"], where)
    at, hidden = f"{where}: visual", language["hidden_size"]
    _whole(visual, (*_SIZES, "image_size", "output_dim", "image_start_id"), at)
    _only(visual, {"output_dim": hidden, "image_start_id": special["img"]}, at)
    if special["imgpad"] >= values["vocab_size"]:
        raise ModelError(f"{where}: vocab_size is {values['vocab_size']}: <imgpad> is {special['imgpad']}")
    tables = [(shapes.get(f"transformer.visual.{k}") or (256,))[0] for k in ("positional_embedding", "attn_pool.query")]
    vision = {key: visual[key] for key in _SIZES}
    side = round(tables[0] ** 0.5) * visual["patch_size"]
    vision |= {"image_size": side, "mlp_ratio": visual.get("mlp_ratio", 4.0), "eps": 1e-6}
    made = {"name": QWEN_VL.name, "image_size": visual["image_size"], "image_token": special["imgpad"]}
    adapter = {"queries": tables[1], "heads": max(1, hidden // 128)}
    return checked({**made, "vision": vision, "adapter": adapter, "language": language}, where)


def to_released_config(config: ModelConfig) -> dict[str, Any]:
    """The released config.json. Raises `ModelError` for a model that the published code could not run."""
    from transformers import AutoConfig

    vision = config.vision
    language = AutoConfig.for_model(**deepcopy(config.language)).to_dict()  # with what is left to the defaults
    heads, rope = language["num_attention_heads"], language["rope_parameters"]
    plain = {"model_type": "qwen2", "num_key_value_heads": heads, "tie_word_embeddings": False, "hidden_act": "silu"}
    tower = {"activation": "gelu", "eps": 1e-6, "image_size": 16 * vision.patch_size}
    _only(language, plain, "the language model")
    _only(rope, {"rope_type": "default"}, "the language model")
    _only(vision.model_dump(), tower, "the tower")
    _only(config.adapter.model_dump(), {"eps": 1e-6, "queries": 256, "heads": config.width // 128}, "the adapter")
    visual = {**vision.model_dump(include={*_SIZES, "mlp_ratio"}), "output_dim": config.width}
    # The first of <img>, </img>, <imgpad>.
    visual |= {"image_size": config.image_size, "image_start_id": config.image_token - 2}
    return {
        **_THEIRS["written"],
        **_FIXED,
        **{key: language[key] for key in _COUNTS},
        **{key: language[ours] for key, ours in _SAME.items()},
        "intermediate_size": 2 * language["intermediate_size"],
        "kv_channels": config.width // heads,
        "rotary_emb_base": rope["rope_theta"],
        "visual": visual,
    }


def _only(values: Mapping[str, Any], needed: Mapping[str, Any], where: str) -> None:
    for key, need in needed.items():
        if values.get(key, need) != need:
            raise ModelError(f"{where}: {key} is {values[key]!r}: the released layout holds only {need!r}")


def _whole(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in keys:
        if type(values.get(key)) is not int or values[key] <= 0:
            raise ModelError(f"{where}: {key} is {values.get(key)!r}: a whole number is needed")
