"""No text becomes an element or an attribute, whatever it holds."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from curation.report.markup import Markup, element, join, visible
from tests.curation.report.runs import HOSTILE

# Characters that mean something to a parser are met often; surrogates and controls are among the others.
texts = st.text(st.one_of(st.sampled_from("<>\"'&=/`-!]\\ \n\t\0"), st.characters()), max_size=60)


def structure(html: str) -> list[tuple[str, list[str]]]:
    return [(tag.name, sorted(tag.attrs)) for tag in BeautifulSoup(html, "html.parser").find_all(True)]


@given(texts)
def test_a_text_is_text_and_its_characters_are_there(text: str) -> None:
    html = element("p", text, title=text, lang="en")
    html.encode()  # surrogates have been written out
    assert structure(html) == [("p", ["lang", "title"])]
    found = BeautifulSoup(html, "html.parser").p
    assert found is not None
    assert found.get_text() == found["title"] == visible(text)


@given(st.lists(texts))
def test_children_are_joined_in_their_order(parts: list[str]) -> None:
    html = element("ul", (element("li", part) for part in parts))
    items = BeautifulSoup(html, "html.parser").find_all("li")
    assert [item.get_text() for item in items] == [visible(part) for part in parts]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts(text: str) -> None:
    assert structure(element("div", text, alt=text)) == [("div", ["alt"])]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("红色的鞋 – café", "红色的鞋 – café"),
        ("line\nfeed\ttab", "line␊feed␉tab"),
        ("\u202eturned", "⟨U+202E⟩turned"),
        ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\x7f\x85", "⟨U+007F⟩⟨U+0085⟩"),
        ("👩\u200d🚀", "👩\u200d🚀"),  # a joiner of ordinary writing
    ],
)
def test_unseen_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_is_clipped_and_its_length_told() -> None:
    assert visible("x" * 1000, 10) == "xxxxxxxxxx … (1,000 characters)"
    assert visible("x" * 10, 10) == "x" * 10


def test_markup_stays_and_attributes_can_be_left_out() -> None:
    assert element("p", Markup("<b>a</b>"), "<", class_="x", lang=None) == '<p class="x"><b>a</b>&lt;</p>'
    assert join(["a", ["b"]], Markup("<br>")) == "ab<br>"
    assert element("rect", x=1.23456789, aria_hidden="true") == '<rect x="1.23457" aria-hidden="true"/>'
