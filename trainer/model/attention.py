"""Attention over a pack: samples behind each other in one row, each of which sees nothing but its own past.

The one decision: the boundaries travel as lengths, never as a mask. A dense block-diagonal mask costs T²; what segments
save over padding, `benchmarks/model.py` tells. No mask function goes with the name `packed`, so transformers builds no
mask at all, and whatever this function cannot honour it refuses: an ignored soft cap or window would be a wrong model
without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from trainer.errors import ModelError

PACKED = "packed"  # the name in transformers' AttentionInterface
# What decoder layers hand down to every attention function, and what has no bearing on its result.
_HARMLESS = {"position_ids", "output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"}


class Segments:
    """The samples of a pack. lengths: tokens of each, of sum T; device: where the model's activations are.

    `offsets`: int32 [N + 1], where each begins and the last ends; `longest`: tokens. On CUDA no list of lengths is
    read: another pack is other numbers, and a compiled block stays compiled.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str) -> None:
        if not lengths or min(lengths) < 1:
            raise ModelError(f"segments of {list(lengths)} tokens: each needs at least one")
        self.lengths = tuple(lengths)
        self.tokens, self.longest = sum(lengths), max(lengths)
        self.offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    def keywords(self) -> dict[str, Any]:
        """For the forward of a model built with `packed`, together with `position_ids` that begin at 0 in each segment.

        A cache is refused and not merely wasted: with it transformers takes positions for those of one sequence.
        """
        return {"segments": self, "use_cache": False, "attention_mask": None}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment. query: [1, H, T, D]; key, value: [1, Hkv, T, D] with H a multiple of Hkv.

    Gives [1, T, H, D], and no weights. Raises `ModelError` without segments, for a mask, a cache, dropout, or any other
    keyword that asks for more than softmax(q·k·scaling)·v.
    """
    if segments is None:
        raise ModelError("packed attention needs its segments: pass **Segments(...).keywords(), or use unpacked(model)")
    asked = {"attention_mask": attention_mask, "dropout": dropout or None, **others}
    asked["is_causal"] = None if asked.get("is_causal") is not False and getattr(module, "is_causal", True) else False
    asked["use_cache"] = asked.get("use_cache") or None
    for name, wish in asked.items():
        if wish is not None and name not in _HARMLESS:
            raise ModelError(f"packed attention cannot honour {name} ({type(module).__name__})")
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == segments.tokens:
        given = f"{query.shape[0]} rows of {query.shape[2]} queries and {key.shape[2]} keys"
        raise ModelError(f"segments of {segments.tokens} tokens do not fit {given}: a pack is one row")
    # The kernel knows half precision alone. Meta tensors go its way: what is planned is what will run.
    if query.is_meta or (query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)):
        return _fused(query, key, value, segments, scaling), None
    return _looped(query, key, value, segments, scaling), None


def _fused(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """One kernel for all segments, compiled with the block around it."""
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    ends, longest = segments.offsets, segments.longest
    grouped = query.shape[1] != key.shape[1]
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped)
    assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
    return out.unsqueeze(0)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # every list of lengths would be a graph of its own
def _looped(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """A call for each segment. `split`, and not slices: its backward is one concatenation, theirs N full tensors."""
    cut = (torch.split(tensor, [*segments.lengths], dim=2) for tensor in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    attend = partial(scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=grouped)
    return torch.cat([attend(*segment).transpose(1, 2) for segment in zip(*cut, strict=True)], dim=1)
