"""Emoji by Unicode's own definition, one for each picture a reader sees."""

import emoji
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.emoji import Emoji, code_points

# caption, emoji, emoji when strict
CASES = [
    ("a plain caption, 5 of 6 #1 *", 0, 0),
    ("", 0, 0),
    ("good 😀", 1, 1),
    ("😀😀 twice", 2, 2),
    ("a watch ⌚", 1, 1),
    ("a watch as text ⌚\ufe0e", 0, 0),
    ("Nike™ © 2019 Acme®", 0, 3),
    ("trade mark as a picture ™\ufe0f", 1, 1),
    ("a heart as text ❤", 0, 1),
    ("a heart ❤\ufe0f", 1, 1),
    ("☎ ↔ ♥ are text", 0, 3),
    ("☎\ufe0e text in so many signs", 0, 0),
    ("flag 🇩🇪 and 🇨🇳", 2, 2),
    ("half a flag 🇫 and three halves 🇩🇪🇫", 3, 3),
    ("keycap 1\ufe0f\u20e3 #\u20e3", 2, 2),
    ("family 👨\u200d👩\u200d👧", 1, 1),
    ("skin 👍🏽 and ✌🏽", 2, 2),
    ("burning heart ❤\ufe0f\u200d🔥 ❤\u200d🔥", 2, 2),
    ("England 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", 1, 1),
    ("rainbow 🏳\ufe0f\u200d🌈", 1, 1),
    ("stars ★ ☆ notes ♪ are no emoji", 0, 0),
    ("ten 五个红色的圆形", 0, 0),
    ("a digit with a selector 1\ufe0f", 0, 0),
]


def table(*captions: str | None) -> pa.Table:
    halves = [
        pa.array(captions[: len(captions) // 2], pa.large_string()),
        pa.array(captions[len(captions) // 2 :], pa.large_string()),
    ]
    return pa.table({"caption": pa.chunked_array(halves)})


def count(rule: Emoji, *captions: str | None) -> list[int | None]:
    found: list[int | None] = rule.score(table(*captions))["count"].to_pylist()
    return found


@pytest.mark.parametrize(("caption", "plain", "strict"), CASES)
def test_count(caption: str, plain: int, strict: int) -> None:
    assert count(Emoji(), caption) == [plain]
    assert count(Emoji(strict=True), caption) == [strict]


def test_every_emoji_of_the_library_is_one() -> None:
    """All fully qualified sequences of the library's data: one emoji each, and the same when strict."""
    sequences = [text for text, data in emoji.EMOJI_DATA.items() if data["status"] == emoji.STATUS["fully_qualified"]]
    assert count(Emoji(), *sequences) == [1] * len(sequences)
    assert count(Emoji(strict=True), *sequences) == [1] * len(sequences)


def test_strict_counts_what_the_library_counts() -> None:
    pictures, texts = code_points()
    alone = sorted(pictures | texts)
    assert count(Emoji(strict=True), *alone) == [1] * len(alone)
    assert not (pictures & texts)


def test_keep_and_nulls() -> None:
    scores = pa.table(Emoji().score(table("a", None, "b 😀", "c 😀😀")))
    assert scores.schema.field("count").type == Emoji().scores["count"]
    assert Emoji().keep(scores).to_pylist() == [True, None, False, False]
    assert Emoji(max_count=1).keep(scores).to_pylist() == [True, None, True, False]


def test_no_rows() -> None:
    empty = pa.table({"caption": pa.chunked_array([], pa.large_string())})
    assert Emoji().keep(pa.table(Emoji().score(empty))).to_pylist() == []


@given(st.lists(st.none() | st.text(), max_size=5))
def test_never_raises_and_strict_never_counts_less(captions: list[str | None]) -> None:
    for plain, strict in zip(count(Emoji(), *captions), count(Emoji(strict=True), *captions), strict=True):
        assert (plain is None and strict is None) or (plain is not None and strict is not None and plain <= strict)


def test_the_threshold_is_no_part_of_the_score() -> None:
    assert Emoji(max_count=3).fingerprint() == Emoji().fingerprint()
    assert Emoji(strict=True).fingerprint() != Emoji().fingerprint()
    assert Emoji().fingerprint()["emoji"] == emoji.__version__


def test_a_negative_maximum_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_count"):
        Emoji(max_count=-1)
