"""The language model: transformers' own Qwen2, Qwen3 or Llama, made to run on packs.

The one decision: transformers' classes stay as they are, so their checkpoints load and ours open there. In return only
families are let in whose attention is plain and full, which is read from the configuration first and then measured on a
few tokens: what else a model does to its scores or logits would be lost without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.attention import PACKED, Segments, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES = ("qwen2", "qwen3", "llama")
# Rotary frequencies that follow from the configuration alone; the others change with the longest position seen.
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
# Parts of a key that announce what packed attention or a plain head cannot do; `False`, 0 and null announce nothing.
_FOREIGN = ("softcap", "soft_cap", "logit_scale", "logits_scal", "expert", "quantization_config", "attention_dropout")
# Packed against unpacked, relative to the largest logit: other kernels round otherwise.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def build_language(config: dict[str, Any]) -> PreTrainedModel:
    """A randomly initialised model of transformers' configuration, fp32, with packed attention; also on `meta`.

    Raises `ModelError`, naming the key, for another family and for whatever breaks packs.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    if config.get("model_type") not in FAMILIES:
        raise ModelError(f"the language model's model_type {config.get('model_type')!r} is none of {FAMILIES}")
    AttentionInterface.register(PACKED, packed_attention)
    try:  # a copy, because transformers writes into nested values
        read = AutoConfig.for_model(**deepcopy(config))
        _refuse_foreign(config, read)
        given = {"attn_implementation": PACKED, "dtype": torch.float32}
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read, **given)  # type: ignore[no-untyped-call]
    except ModelError:
        raise
    except (StrictDataclassError, ValueError, TypeError, KeyError, ZeroDivisionError, AssertionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"the language model's configuration: {said}") from error
    # A pack has no padding, and the padding token is often eos, whose row shall train like any other.
    _ends(model)[0].padding_idx = None
    return model


def _refuse_foreign(config: dict[str, Any], read: PreTrainedConfig) -> None:
    """config: as it was given, with keys that the family may not know; read: with every default in place."""
    wrong = {key: value for key, value in config.items() if value and any(part in key for part in _FOREIGN)}
    wrong["sliding_window"] = getattr(read, "sliding_window", None)
    wrong["layer_types"] = sorted(set(getattr(read, "layer_types", None) or ()) - {"full_attention"})
    wrong["rope_type"] = sorted({read.rope_parameters["rope_type"]} - _STATIC_ROPE)
    if read.num_attention_heads % read.num_key_value_heads:
        wrong["num_key_value_heads"] = read.num_key_value_heads
    if config.get("is_causal") is False:
        wrong["is_causal"] = "false"
    for key in filter(wrong.get, wrong):
        raise ModelError(f"the language model's {key} = {wrong[key]!r:.60} is not supported")


def _ends(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    ends = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return cast(tuple[nn.Embedding, nn.Linear], ends)


def hidden_states(model: PreTrainedModel, embeds: Tensor, position_ids: Tensor, segments: Segments) -> Tensor:
    """The last layer's output after its norm, [T, D]. embeds: [T, D]; position_ids: int64 [T], 0 first in a segment."""
    rows = {"inputs_embeds": embeds.unsqueeze(0), "position_ids": position_ids.unsqueeze(0)}
    return cast(Tensor, model.base_model(**rows, **segments.keywords()).last_hidden_state[0])


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """hidden [..., D] -> logits [..., V]; of as many rows as the caller can afford."""
    return cast(Tensor, _ends(model)[1](hidden))


@contextmanager
def unpacked(model: PreTrainedModel, implementation: str = "sdpa") -> Iterator[None]:
    """Transformers' own attention, with its masks and caches: for `generate`."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def check_language(model: PreTrainedModel) -> None:
    """Measures on 16 tokens in two segments that packs and chunked heads give the model's own logits.

    The reference is `eager`, which honours every invention of a family. Raises `ModelError` with the difference.
    """
    table, out = _ends(model)
    device = table.weight.device
    lengths = (9, 7)
    ids = torch.randint(table.num_embeddings, (sum(lengths),), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    segments = Segments(lengths, device)
    given = {"input_ids": ids[None], "position_ids": positions[None], **segments.keywords()}
    packed = model(**given).logits[0]
    with unpacked(model, "eager"):
        apart = [model(input_ids=part[None], use_cache=False).logits[0] for part in ids.tensor_split([lengths[0]])]
    # A fresh model's logits are so small that no soft cap bites: hidden states are stretched until the largest is 100.
    scale = 100 / packed.abs().max()
    with out.register_forward_pre_hook(lambda _, args: (args[0] * scale,)):
        own = model(**given).logits[0]
    ours = head(model, hidden_states(model, table(ids), positions, segments) * scale)
    tolerance = _TOLERANCE.get(table.weight.dtype, 1e-4)
    for what, one, other, allowed in (
        ("packed samples give other logits than single ones", packed, torch.cat(apart), tolerance),
        # The same kernels on the same numbers: only what a model does beside its head can differ.
        ("its logits are not head(hidden states), as with a scale or a soft cap", ours, own, tolerance / 5),
    ):
        off = ((one - other).float().abs().max() / other.float().abs().max()).item()
        if not off <= allowed:  # NaN, as of tables that were never filled, is refused too
            raise ModelError(f"{type(model).__name__} cannot be trained on packs: {what} (by {off:.2g} of the largest)")


def rebuild_rotary(model: PreTrainedModel, device: torch.device | str) -> None:
    """Fills the rotary tables, which no checkpoint holds and `to_empty` leaves as garbage: fp32, bit for bit those of a
    model built on the CPU. Raises `ModelError` for another buffer that no checkpoint holds.
    """
    for name, module in model.named_modules():
        if module._non_persistent_buffers_set and not hasattr(module, "inv_freq"):
            raise ModelError(f"{name} of {type(model).__name__} has buffers that cannot be rebuilt")
        if module._non_persistent_buffers_set:
            with torch.device("cpu"):
                fresh = type(module)(module.config)
            for key, values in fresh.named_buffers():
                module.register_buffer(key, values.to(device), persistent=False)
            module.attention_scaling = fresh.attention_scaling
