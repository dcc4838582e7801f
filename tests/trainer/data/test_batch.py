"""Samples in one row: whose label is where, which pixels are whose, and what does not fit together."""

from __future__ import annotations

import pytest
import torch

from trainer.data.batch import IGNORE, Encoded, pack
from trainer.errors import DataError

PAD, QUERIES, SIDE = 9, 2, 4
NUMBERS = ("input_ids", "labels", "position_ids", "places", "taught")


def encoded(images: int, *words: tuple[int, bool], weight: int = 1, order: tuple[int, ...] = ()) -> Encoded:
    ids = (PAD,) * (images * QUERIES) + tuple(word for word, _ in words)
    flags = (False,) * (images * QUERIES) + tuple(flag for _, flag in words)
    return Encoded(ids, flags, images, "caption", weight, None if weight else "too_long", order)


def picture(value: float) -> torch.Tensor:
    return torch.full((3, SIDE, SIDE), value)


def test_a_label_is_the_next_token_of_the_same_sample() -> None:
    samples = [encoded(1, (5, False), (6, True), (7, True)), encoded(0, (1, True), (2, True), (3, False))]
    batch = pack(samples, [picture(0.0)], SIDE, PAD, QUERIES)
    assert batch.input_ids.tolist() == [9, 9, 5, 6, 7, 1, 2, 3]
    # 5 predicts 6 and 6 predicts 7; nothing predicts the first token of a sample, and 3 is not supervised.
    assert batch.labels.tolist() == [IGNORE, IGNORE, 6, 7, IGNORE, 2, IGNORE, IGNORE]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.lengths == (5, 3)
    assert batch.places.tolist() == [0, 1]
    assert batch.taught.tolist() == [2, 3, 5]
    assert {getattr(batch, name).dtype for name in NUMBERS} == {torch.int64}


def test_no_label_in_a_sample_of_weight_0() -> None:
    batch = pack([encoded(0, (1, True), (2, True), weight=0)], [], SIDE, PAD, QUERIES)
    assert batch.labels.tolist() == [IGNORE, IGNORE]
    assert batch.taught.tolist() == []


def test_pixels_stand_in_the_order_of_the_placeholders() -> None:
    samples = [
        encoded(1, (1, True)),
        encoded(3, (1, True), order=(2, 0, 1)),
        encoded(0, (1, True)),
        encoded(1, (1, True)),
    ]
    batch = pack(samples, [picture(value) for value in (10, 20, 21, 22, 30)], SIDE, PAD, QUERIES)
    assert batch.pixels[:, 0, 0, 0].tolist() == [10, 22, 20, 21, 30]
    assert batch.pixels.shape == (5, 3, SIDE, SIDE)


def test_without_images_pixels_are_an_empty_batch() -> None:
    batch = pack([encoded(0, (1, True))], [], SIDE, PAD, QUERIES)
    assert batch.pixels.shape == (0, 3, SIDE, SIDE)
    assert batch.pixels.dtype == torch.float32


@pytest.mark.parametrize("given", [0, 1, 3])
def test_images_shown_and_given_differ(given: int) -> None:
    with pytest.raises(DataError, match=rf"the samples show 2 images, {given} were given"):
        pack([encoded(2, (1, True))], [picture(0)] * given, SIDE, PAD, QUERIES)


@pytest.mark.parametrize(
    ("ids", "images"), [((1, 2), 1), ((9, 9, 1), 0), ((9, 1), 1), ((9, 9, 9, 1), 1), ((9, 9, 1), 2), ((), 0)]
)
def test_placeholders_and_images_of_one_sample_differ(ids: tuple[int, ...], images: int) -> None:
    bad = Encoded(ids, (False,) * len(ids), images, "vqa")
    with pytest.raises(DataError, match=r"sample 1 \(vqa\) has .* placeholders, for"):
        pack([encoded(0, (1, True)), bad], [picture(0)] * images, SIDE, PAD, QUERIES)


def test_what_is_no_sample() -> None:
    with pytest.raises(DataError, match="3 ids and 2 flags"):
        Encoded((1, 2, 3), (True, True), 0, "text")
    for order in ((0, 0), (1, 2), (0,), (0, 1, 2)):
        with pytest.raises(DataError, match="2 images cannot be shown in the order"):
            Encoded((1,), (True,), 2, "chat", order=order)


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = pack([encoded(1, (1, True))], [picture(0)], SIDE, PAD, QUERIES).to("meta")
    assert {getattr(batch, name).device.type for name in (*NUMBERS, "pixels")} == {"meta"}
    assert batch.lengths == (3,)
