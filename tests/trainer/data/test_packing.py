"""First fit by counts: no pack passes its limits, and none is held back or lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batch import TASKS, Encoded
from trainer.data.packing import Item, Packer

LENGTH, IMAGES = 20, 3


def item(place: int, tokens: int, images: int = 0, task: str = "text") -> Item:
    return Item(Encoded(tuple(range(tokens)), (True,) * tokens, images, task), place)


def places(packs: list[list[Item]]) -> list[list[int]]:
    return [[each.place for each in pack] for pack in packs]


@given(
    st.lists(st.tuples(st.integers(1, LENGTH), st.integers(0, IMAGES), st.sampled_from(TASKS[:3])), max_size=80),
    st.integers(1, 5),
    st.booleans(),
)
@settings(deadline=None)
def test_no_pack_passes_its_limits_and_nothing_is_lost(
    made: list[tuple[int, int, str]], bins: int, by_task: bool
) -> None:
    packer, closed = Packer(LENGTH, IMAGES, bins, by_task, []), list[list[Item]]()
    for place, (tokens, images, task) in enumerate(made):
        given_ = packer.add(item(place, tokens, images, task))
        assert len(packer.open) <= bins
        if given_ is not None:
            closed.append(given_)
            fullest = sum(len(each.encoded.ids) for each in given_)
            # The last open pack is that of the new sample.
            assert all(fullest >= sum(len(each.encoded.ids) for each in pack) for pack in packer.open[:-1])
    packs = closed + packer.open
    assert sorted(place for pack in places(packs) for place in pack) == list(range(len(made)))
    for pack in packs:
        assert 0 < sum(len(each.encoded.ids) for each in pack) <= LENGTH
        assert sum(each.encoded.images for each in pack) <= IMAGES
        assert not by_task or len(Counter(each.encoded.task for each in pack)) == 1
        assert [each.place for each in pack] == sorted(each.place for each in pack)


def test_the_first_that_fits_takes_it() -> None:
    packer = Packer(10, 9, 3, False, [])
    assert all(packer.add(item(place, tokens)) is None for place, tokens in enumerate([7, 6, 4, 3, 4]))
    assert places(packer.open) == [[0, 3], [1, 2], [4]]


def test_the_fullest_is_closed_when_all_are_open() -> None:
    packer = Packer(10, 9, 2, False, [])
    for place, tokens in enumerate([6, 8]):
        packer.add(item(place, tokens))
    closed = packer.add(item(2, 5))
    assert closed is not None
    assert places([closed]) == [[1]]
    assert places(packer.open) == [[0], [2]]


def test_images_close_a_pack_too() -> None:
    packer = Packer(100, 2, 1, False, [])
    assert packer.add(item(0, 5, 2)) is None
    assert packer.add(item(1, 5, 0)) is None
    closed = packer.add(item(2, 5, 1))
    assert closed is not None
    assert places([closed]) == [[0, 1]]
