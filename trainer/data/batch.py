"""Samples as token ids, and a packed batch of them: one row without padding, every sample a segment of its own.

The one decision: what is supervised is said per token and turned into labels here, in one place, so that no label can
be one off: `labels[i]` is the token that position i shall predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from trainer.errors import DataError

IGNORE = -100  # a label without a loss: the number that torch's cross_entropy ignores
# The tasks of shards.schema in their order: the number of a task is its place here.
TASKS = ("caption", "vqa", "ocr_vqa", "grounded_caption", "refer", "region_caption", "ocr", "text", "chat")


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens.

    `ids`: token ids, the image's placeholders among them. `supervised`: as long, whether the token is in the loss.
    `images`: how many it shows. `weight`: 0 for a sample that cannot be trained on; it is then counted and gives no
    loss. `why`: the reason, such as `too_long`; also `cut`, of a sample that weighs 1 but is not all of it.
    `order`: the number of the image at each place, where a sample does not show them as they are numbered; else empty.
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    images: int
    task: str
    weight: int = 1
    why: str | None = None
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.supervised):
            raise DataError(f"{len(self.ids)} ids and {len(self.supervised)} flags")
        if self.order and sorted(self.order) != list(range(self.images)):
            raise DataError(f"{self.images} images cannot be shown in the order {self.order}")


def filler(eos: int, task: str = "text", why: str | None = None) -> Encoded:
    """In the place of a sample that there is not, or that cannot be trained on: a lone eos of weight 0."""
    return Encoded((eos,), (False,), 0, task, 0, why)


def prompt(ids: Sequence[int], images: int) -> Encoded:
    """What a model is to go on from: nothing of it is in the loss."""
    return Encoded(tuple(ids), (False,) * len(ids), images, "text")


@dataclass(frozen=True)
class Batch:
    """Samples behind each other in one row of T tokens.

    `input_ids`, `labels`, `position_ids`: int64 [T]; positions begin at 0 in every segment. `lengths`: tokens of each
    segment, of sum T. `pixels`: [N, 3, S, S], the images in the order of their placeholders; N may be 0; float32, or
    uint8 that are still to be normalised; images behind the last placeholder are for shape only. `places`: where the
    placeholders are, `taught`: which positions have a label, `tasks`: their task's number in `TASKS`; int64, known
    before a GPU is asked.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    pixels: Tensor
    places: Tensor
    taught: Tensor
    tasks: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> Batch:
        """Under the name that torch's loader calls."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})


_TENSORS = ("input_ids", "labels", "position_ids", "pixels", "places", "taught", "tasks")


def pack(
    samples: Sequence[Encoded], pixels: Sequence[Tensor], image_size: int, image_token: int, queries: int
) -> Batch:
    """Samples as one batch. pixels: one [3, S, S] an image, in the order of the samples and of their `images`; they are
    put in the order of the placeholders here.

    Raises `DataError` where placeholders and images do not agree: nothing later would tell.
    """
    if (shown := sum(sample.images for sample in samples)) != len(pixels):
        raise DataError(f"the samples show {shown} images, {len(pixels)} were given")
    placed: list[Tensor] = []
    for number, sample in enumerate(samples):
        places = sample.ids.count(image_token)
        if not sample.ids or places != sample.images * queries:
            has = f"{len(sample.ids)} tokens, {places} of them placeholders"
            raise DataError(f"sample {number} ({sample.task}) has {has}, for {sample.images} images of {queries}")
        first = len(placed)
        placed += [pixels[first + image] for image in sample.order or range(sample.images)]
    lengths = tuple(len(sample.ids) for sample in samples)
    input_ids = torch.tensor([*chain.from_iterable(sample.ids for sample in samples)], dtype=torch.long)
    # Whether the next token is of the same sample and in the loss.
    flags = ((flag and sample.weight > 0 for flag in (*sample.supervised[1:], False)) for sample in samples)
    taught = torch.tensor([*chain.from_iterable(flags)], dtype=torch.bool)
    tasks = torch.tensor([TASKS.index(sample.task) for sample in samples], dtype=torch.long)
    return Batch(
        input_ids,
        torch.where(taught, input_ids.roll(-1), IGNORE),
        torch.cat([torch.arange(length) for length in lengths]),
        lengths,
        torch.stack(placed) if placed else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8),
        (input_ids == image_token).nonzero().flatten(),
        taught.nonzero().flatten(),
        tasks.repeat_interleave(torch.tensor(lengths))[taught],
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Batches behind each other as one; a single one as it is."""
    if len(batches) == 1:
        return batches[0]
    starts = [0, *accumulate(len(batch.input_ids) for batch in batches)]
    made = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in _TENSORS}
    for name in ("places", "taught"):
        made[name] = torch.cat([getattr(batch, name) + start for batch, start in zip(batches, starts, strict=False)])
    return Batch(**made, lengths=tuple(chain.from_iterable(batch.lengths for batch in batches)))


def fill_up(batch: Batch, tokens: int, images: int, token: int) -> Batch:
    """The same batch in a fixed shape, as a compiled model wants it: the tail is a segment of its own, without a loss.

    Raises `DataError` where the batch is larger.
    """
    tail, more = tokens - len(batch.input_ids), images - len(batch.pixels)
    if tail < 0 or more < 0:
        raise DataError(f"{len(batch.input_ids)} tokens and {len(batch.pixels)} images pass {tokens} and {images}")
    size = batch.pixels.shape[1:]
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, batch.input_ids.new_full((tail,), token)]),
        labels=torch.cat([batch.labels, batch.labels.new_full((tail,), IGNORE)]),
        position_ids=torch.cat([batch.position_ids, torch.arange(tail)]),
        lengths=(*batch.lengths, tail) if tail else batch.lengths,
        pixels=torch.cat([batch.pixels, batch.pixels.new_zeros(more, *size)]),
    )


def across(batch: Batch) -> Batch:
    """One segment: every sample sees those before it, as a plain causal model trained on packs does."""
    tokens = len(batch.input_ids)
    return replace(batch, lengths=(tokens,), position_ids=torch.arange(tokens))
