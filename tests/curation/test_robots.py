from __future__ import annotations

import pytest

from curation.fetch.robots import refuses


@pytest.mark.parametrize(
    ("value", "agent", "refused"),
    [
        ("noai", None, True),
        ("NoIndex, nofollow", None, True),
        ("nofollow,noimageai", None, True),
        ("none", None, True),
        ("all", None, False),
        ("noindex, max-image-preview: large", None, True),
        ("max-snippet:-1, noai", None, True),
        ("noai, max-snippet:-1", None, True),
        ("max-image-preview: none", None, False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noindex", None, True),
        ("unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT", None, False),
        ("*: noai", None, True),
        ("otherbot: noai", None, False),
        ("otherbot: noai, noindex", None, False),
        ("otherbot: noai, *: noindex", None, True),
        ("winnow: noai", "winnow", True),
        ("Winnow: noai", "WINNOW", True),
        ("otherbot: nofollow, winnow: noindex, nofollow", "winnow", True),
        ("winnow: nofollow, otherbot: noindex", "winnow", False),
        ("noindexed, noaim", None, False),
        ("", None, False),
        (":::,,: ,", None, False),
        ("no\xefndex, noai", None, True),
    ],
)
def test_what_a_header_forbids(value: str, agent: str | None, refused: bool) -> None:
    assert refuses([value], agent) is refused


def test_any_of_several_headers_counts() -> None:
    assert refuses(["nofollow", "noai"], None)
    assert not refuses([], None)
