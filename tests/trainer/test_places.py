"""Places in what a model says: read from ids, tolerant of what models invent, drawn on a copy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.models import tokenizer
from trainer.data.tasks import box_text, points_text
from trainer.places import Place, draw, places_of

S = tokenizer().special


def ids(*pieces: str) -> list[int]:
    """Tags by their short names with a leading `@`, the rest as text."""
    found: list[int] = []
    for piece in pieces:
        found += [S[piece[1:]]] if piece.startswith("@") else tokenizer().encode(piece)
    return found


def box(text: str) -> tuple[str, str, str]:
    return "@box", text, "@/box"


def ref(text: str) -> tuple[str, str, str]:
    return "@ref", text, "@/ref"


def test_a_phrase_may_have_several_boxes() -> None:
    said = ids("We see", *ref(" two stars"), *box("(0,0),(999,500)"), *box("(10,20),(30,40)"), " and", *ref(" a ring"))
    assert places_of(said, tokenizer()) == [
        Place("two stars", ((0, 0), (1, 500 / 999))),
        Place("two stars", ((10 / 999, 20 / 999), (30 / 999, 40 / 999))),
    ]


def test_a_quad_has_four_corners() -> None:
    said = ids(*ref(" SALE"), "@quad", "(1,2),(3,4),(5,6),(7,8)", "@/quad")
    assert places_of(said, tokenizer()) == [Place("SALE", tuple((x / 999, (x + 1) / 999) for x in (1, 3, 5, 7)))]


def test_a_place_belongs_to_the_phrase_right_before_it() -> None:
    said = ids(*ref(" a star"), " is here: ", *box("(1,2),(3,4)"))
    assert places_of(said, tokenizer()) == [Place(None, ((1 / 999, 2 / 999), (3 / 999, 4 / 999)))]


def test_corners_in_the_wrong_order_are_put_right() -> None:
    assert places_of(ids(*box("(900,800),(100,200)")), tokenizer()) == [
        Place(None, ((100 / 999, 200 / 999), (900 / 999, 800 / 999)))
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(1,2)",
        "(1,2),(3,4),(5,6)",
        "(1,2),(3,1000)",
        "(1,2),(3,40000)",
        "(a,b),(c,d)",
        "(1;2),(3;4)",
        "(-1,2),(3,4)",
    ],
)
def test_what_is_no_box_is_left_out(text: str) -> None:
    assert places_of(ids(*box(text)), tokenizer()) == []


def test_letters_that_spell_a_tag_are_no_tag() -> None:
    assert places_of(ids("<ref>x</ref><box>(1,2),(3,4)</box>"), tokenizer()) == []


@pytest.mark.parametrize(
    "pieces", [("@box", "(1,2),(3,4)"), ("(1,2),(3,4)", "@/box"), ("@box", "(1,2),(3,4)", "@/quad")]
)
def test_tags_without_their_other_half(pieces: tuple[str, ...]) -> None:
    assert places_of(ids(*pieces), tokenizer()) == []


edge = st.floats(0, 1)


@settings(deadline=None)
@given(st.tuples(edge, edge, edge, edge), st.lists(st.tuples(edge, edge), min_size=4, max_size=4))
def test_what_is_written_is_read(corners: tuple[float, float, float, float], quad: list[tuple[float, float]]) -> None:
    left, top = min(corners[0], corners[2]), min(corners[1], corners[3])
    right, bottom = max(corners[0], corners[2]), max(corners[1], corners[3])
    said = ids(*box(box_text((left, top, right, bottom))), "@quad", points_text(quad), "@/quad")
    found = [point for place in places_of(said, tokenizer()) for point in place.points]
    wanted = [(left, top), (right, bottom), *quad]
    assert len(found) == 6
    for (x, y), (a, b) in zip(found, wanted, strict=True):
        assert abs(x - a) < 0.00051
        assert abs(y - b) < 0.00051


@settings(deadline=None)
@given(st.lists(st.integers(0, tokenizer().size - 1), max_size=60))
def test_any_ids_are_read_without_an_error(said: list[int]) -> None:
    for place in places_of(said, tokenizer()):
        assert len(place.points) in (2, 4)


def test_places_are_drawn_on_a_copy() -> None:
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw(
        image,
        [Place("a star", ((0.1, 0.2), (0.5, 0.9))), Place(None, ((0.6, 0.1), (0.9, 0.1), (0.9, 0.8), (0.6, 0.8)))],
    )
    assert image.getcolors() == [(20_000, (255, 255, 255))]
    assert drawn.size == image.size
    # The left edge of the box, 10 % of the width in, and of the quad; nothing between box and quad.
    assert drawn.getpixel((20, 70)) != (255, 255, 255)
    assert drawn.getpixel((119, 50)) != (255, 255, 255)
    assert drawn.getpixel((110, 50)) == (255, 255, 255)
    assert drawn.getpixel((20, 70)) != drawn.getpixel((119, 50))
