"""Samples in one row: whose label is where, which pixels are whose, and what does not fit together."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from shards.schema import Sample
from trainer.data.batch import IGNORE, TASKS, Encoded, across, fill_up, join, pack
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
    assert batch.pixels.dtype == torch.uint8  # joined with others it becomes what they are


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


def test_joined_batches_are_the_batch_of_all_samples() -> None:
    samples = [
        encoded(1, (5, False), (6, True)),
        encoded(0, (1, True), (2, True)),
        encoded(2, (3, False), (4, True), order=(1, 0)),
    ]
    shown = [[picture(1)], [], [picture(2), picture(3)]]
    whole = pack(samples, [each for pixels in shown for each in pixels], SIDE, PAD, QUERIES)
    joined = join([pack([one], pixels, SIDE, PAD, QUERIES) for one, pixels in zip(samples, shown, strict=True)])
    assert joined.lengths == whole.lengths
    for name in (*NUMBERS, "pixels", "tasks"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def test_joined_pixels_stay_bytes() -> None:
    seen = pack([encoded(1, (1, True))], [picture(7).to(torch.uint8)], SIDE, PAD, QUERIES)
    unseen = pack([encoded(0, (1, True), (2, True))], [], SIDE, PAD, QUERIES)
    assert join([unseen, seen]).pixels.dtype == torch.uint8
    assert join([unseen, unseen]).pixels.shape == (0, 3, SIDE, SIDE)


def test_the_tail_is_a_segment_without_loss() -> None:
    batch = pack([encoded(1, (5, True), (6, True))], [picture(1)], SIDE, PAD, QUERIES)
    full = fill_up(batch, 10, 3, 0)
    assert full.lengths == (4, 6)
    assert full.input_ids.tolist() == [9, 9, 5, 6, 0, 0, 0, 0, 0, 0]
    assert full.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert full.labels.tolist()[4:] == [IGNORE] * 6
    assert (len(full.pixels), full.places.tolist(), full.taught.tolist()) == (3, [0, 1], batch.taught.tolist())
    assert fill_up(batch, 4, 1, 0).lengths == (4,)
    for tokens, images in ((3, 1), (4, 0)):
        with pytest.raises(DataError, match=f"4 tokens and 1 images pass {tokens} and {images}"):
            fill_up(batch, tokens, images, 0)


def test_across_a_pack_there_is_one_segment() -> None:
    batch = across(pack([encoded(0, (1, True), (2, True)), encoded(0, (3, True))], [], SIDE, PAD, QUERIES))
    assert batch.lengths == (3,)
    assert batch.position_ids.tolist() == [0, 1, 2]
    assert batch.labels.tolist() == [2, IGNORE, IGNORE]


def test_every_task_of_the_schema_has_a_number() -> None:
    named = [field.model_fields["task"].annotation for field in get_args(get_args(Sample)[0])]
    assert sorted(task for literal in named for task in get_args(literal)) == sorted(TASKS)
