"""Samples as token ids, and a packed batch of them: one row without padding, every sample a segment of its own.

The one decision: what is supervised is said per token and turned into labels here, in one place, so that no label can
be one off: `labels[i]` is the token that position i shall predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.errors import DataError

IGNORE = -100  # a label without a loss: the number that torch's cross_entropy ignores


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


@dataclass(frozen=True)
class Batch:
    """Samples behind each other in one row of T tokens.

    `input_ids`, `labels`, `position_ids`: int64 [T]; positions begin at 0 in every segment. `lengths`: tokens of each
    segment, of sum T. `pixels`: float32 [N, 3, S, S], the images in the order of their placeholders; N may be 0.
    `places`: where the placeholders are, `taught`: which positions have a label; int64, known before a GPU is asked.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    pixels: Tensor
    places: Tensor
    taught: Tensor

    def to(self, device: torch.device | str) -> Batch:
        names = ("input_ids", "labels", "position_ids", "pixels", "places", "taught")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(
    samples: Sequence[Encoded], pixels: Sequence[Tensor], image_size: int, image_token: int, queries: int
) -> Batch:
    """Samples as one batch. pixels: one [3, S, S] an image, in the order of the samples and of their `images`; they are
    put in the order of the placeholders here.

    Raises `DataError` where placeholders and images do not agree: nothing later would tell.
    """
    shown = sum(sample.images for sample in samples)
    if shown != len(pixels):
        raise DataError(f"the samples show {shown} images, {len(pixels)} were given")
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    placed: list[Tensor] = []
    for number, sample in enumerate(samples):
        places = sample.ids.count(image_token)
        if not sample.ids or places != sample.images * queries:
            raise DataError(
                f"sample {number} ({sample.task}) has {len(sample.ids)} tokens, {places} of them placeholders, "
                f"for {sample.images} images of {queries}"
            )
        ids += sample.ids
        taught = (flag and sample.weight > 0 for flag in sample.supervised[1:])
        labels += [token if flag else IGNORE for token, flag in zip(sample.ids[1:], taught, strict=True)] + [IGNORE]
        positions += range(len(sample.ids))
        first = len(placed)
        placed += [pixels[first + image] for image in sample.order or range(sample.images)]
    input_ids, targets = torch.tensor(ids, dtype=torch.long), torch.tensor(labels, dtype=torch.long)
    return Batch(
        input_ids,
        targets,
        torch.tensor(positions, dtype=torch.long),
        tuple(len(sample.ids) for sample in samples),
        torch.stack(placed) if placed else torch.empty(0, 3, image_size, image_size),
        (input_ids == image_token).nonzero().flatten(),
        (targets != IGNORE).nonzero().flatten(),
    )
