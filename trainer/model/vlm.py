"""The whole model: pictures become 256 embeddings each, in the place of their placeholders; then a causal LM.

The one decision: the loss is made inside the forward, from the supervised positions alone and in chunks, so the logits
of a batch never exist whole, and every module runs inside the root's forward, as sharding wants it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.data.batch import Batch
from trainer.data.images import normalised
from trainer.model.adapter import Adapter, Projection
from trainer.model.attention import Segments
from trainer.model.config import ModelConfig
from trainer.model.language import build_language, head, hidden_states, rebuild_rotary
from trainer.model.vision import Tower

# Tokens whose logits exist at once: 1024 x 151,936 in fp32 are 0.6 GB.
CHUNK = 1024


class VisionLanguageModel(nn.Module):
    """Qwen-VL's architecture. Parameters: `vision`, `adapter`, `projection` (ln_post and proj), `language`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = Tower(config.vision)
        self.adapter = Adapter(config.adapter, config.vision.width, config.width)
        self.projection = Projection(config.width, config.adapter.eps)
        self.language = build_language(config.language)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[N, 3, S, S], of uint8 or normalised, to [N, queries, width]. No graph is kept below what trains."""
        if pixels.dtype == torch.uint8:
            pixels = normalised(pixels)
        trains = any(parameter.requires_grad for parameter in self.vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            patches = self.vision(pixels)
        features: Tensor = self.projection(self.adapter(patches.to(self.adapter.query.dtype)))
        return features

    def embed(self, input_ids: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        """Ids [T] to embeddings [T, width]; rows `places` [N x queries] become the N images' features, in order."""
        embeds: Tensor = self.language.get_input_embeddings()(input_ids)
        if len(pixels):
            features = self.encode_images(pixels).flatten(0, 1)
            shown = embeds.index_copy(0, places, features[: len(places)].to(embeds.dtype))
            return shown if len(places) else shown + (features * 0).sum().to(embeds.dtype)
        if not (self.training and torch.is_grad_enabled()) and not torch.distributed.is_initialized():
            return embeds
        # Without an image the tower would give no gradient and, sharded, gather no weights, in evaluation either: ranks
        # that have one would wait for ever.
        side = self.config.vision.image_size
        nothing = (self.encode_images(pixels.new_zeros(1, 3, side, side)) * 0).sum()
        return embeds + nothing.to(embeds.dtype)

    def hidden(self, batch: Batch) -> Tensor:
        """The language model's last hidden states [T, width]."""
        embeds = self.embed(batch.input_ids, batch.pixels, batch.places)
        return hidden_states(self.language, embeds, batch.position_ids, Segments(batch.lengths, embeds.device))

    def forward(self, batch: Batch) -> Tensor:
        """The cross-entropy of each of a batch's supervised tokens: fp32 [len(batch.taught)].

        Their sum is to be divided by the number of all ranks and micro-batches, which only the caller knows.
        """
        taught = self.hidden(batch).index_select(0, batch.taught)
        wanted = batch.labels.index_select(0, batch.taught)
        # At least one chunk, if an empty one: the head takes part on every rank.
        chunks = zip(torch.split(taught, CHUNK), torch.split(wanted, CHUNK), strict=True)
        return torch.cat([checkpoint(self._losses, *chunk, use_reentrant=False) for chunk in chunks])

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(self.language, hidden).float(), labels, reduction="none")

    def logits(self, batch: Batch) -> Tensor:
        """[T, vocabulary], all at once: for tests and short sequences."""
        return head(self.language, self.hidden(batch))

    def next_tokens(self, batch: Batch, silent: Sequence[int] = ()) -> Tensor:
        """The likeliest token behind each segment, int64 [segments], but none of the ids `silent`.

        For looks in training: FSDP knows it as a forward once it is registered as one.
        """
        hidden = self.hidden(batch)
        ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
        return head(self.language, hidden[ends]).index_fill(1, ends.new_tensor(silent), -torch.inf).argmax(1)


def build_model(config: ModelConfig, device: torch.device | str = "cpu") -> VisionLanguageModel:
    """A model with fresh weights from torch's generator; on `meta` without any.

    Raises `ModelError` for a configuration that cannot be built.
    """
    with torch.device(device):
        return VisionLanguageModel(config)


def refill(model: VisionLanguageModel, device: torch.device | str) -> None:
    """Makes what no checkpoint holds and `to_empty` spoils: rotary tables, and the tie of head and embedding."""
    rebuild_rotary(model.language, torch.device(device))
    model.language.tie_weights()


def set_trainable(model: VisionLanguageModel, modules: Collection[str], projection_with: str = "vision") -> None:
    """Freezes all but the named modules, of `vision`, `adapter` and `language`.

    projection_with: whether ln_post and proj train with the tower, as released (frozen in stage 3), or the adapter.
    """
    for name in ("vision", "adapter", "language"):
        getattr(model, name).requires_grad_(name in modules)
    model.projection.requires_grad_(projection_with in modules)
