"""Captions through a CLIP model's text tower, each as long as it needs.

The one decision: open_clip fills every caption up to the model's context (77 tokens) where half of them have 17 or
fewer, and a ViT-B/32 spends two fifths of its time there. What follows the end mark changes nothing under a causal
mask, so a caption is read with those of its own length class, in passes of one fixed shape a class: its features
depend on the caption alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# More classes leave more passes that are not full at a unit's end.
_CLASSES = (16, 32)


def read_short_texts(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Lets a model of open_clip read captions of several lengths; gives these, in tokens, the last is its context.

    Only that one where padding has a say: no causal mask, another pooling, or a tokenizer of Hugging Face.
    """
    context: int = tokenizer.context_length
    tower = getattr(model, "text", None)
    exact = (
        type(tower).__name__ == "TextTransformer"
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and getattr(tower, "pool_type", None) == "argmax"
        and not hasattr(tokenizer, "tokenizer")
    )
    if tower is not None and exact:  # the tower fits its positions to a shorter text, and forgets its mask
        tower.transformer.register_forward_pre_hook(_fit_mask, with_kwargs=True)
    return (*(length for length in _CLASSES if exact and length < context), context)


def _fit_mask(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    length = given[0].shape[1]
    return given, {**named, "attn_mask": named["attn_mask"][:length, :length]}


class Reader:
    """Text features by row, of captions that wait until a pass of their length is full."""

    def __init__(self, model: Any, lengths: Sequence[int], batch_size: int, device: torch.device) -> None:
        self._model, self._lengths, self._batch_size, self._device = model, lengths, batch_size, device
        self._waiting: dict[int, list[tuple[int, torch.Tensor]]] = {length: [] for length in lengths}
        self.features: dict[int, torch.Tensor] = {}  # (width,)

    def add(self, rows: Sequence[int], tokens: torch.Tensor) -> None:
        """tokens: (rows, context). To be called, as `finish`, in torch's inference mode."""
        # The end mark is the highest token there is; zeros are padding, and exclamation marks.
        ends = tokens.argmax(dim=-1).tolist() if len(self._lengths) > 1 else [self._lengths[0] - 1] * len(rows)
        for row, text, end in zip(rows, tokens, ends, strict=True):
            length = next(length for length in self._lengths if end < length)
            self._waiting[length].append((row, text[:length]))
            if len(self._waiting[length]) == self._batch_size:
                self._read(length)

    def finish(self) -> None:
        """Reads what waits."""
        for length, waiting in self._waiting.items():
            if waiting:
                self._read(length)

    def _read(self, length: int) -> None:
        import torch

        waiting, self._waiting[length] = self._waiting[length], []
        texts = [text for _, text in waiting]
        # Empty places repeat the first caption: a text of padding alone is something no model was made for.
        texts += texts[:1] * (self._batch_size - len(texts))
        found = self._model.encode_text(torch.stack(texts).to(self._device)).float().cpu()
        self.features |= {row: features for (row, _), features in zip(waiting, found, strict=False)}
