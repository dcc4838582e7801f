"""Length in the unit of each script, on cleaned captions."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.text_length import TextLength

# caption, characters, words, Han characters, kept by default
CASES = [
    ("", 0, 0, 0, False),
    ("red cat", 7, 2, 0, False),
    ("a b c", 5, 3, 0, False),
    ("a red cat", 9, 3, 0, True),
    ("a . - cat", 9, 2, 0, False),
    ("don't stop-me now", 17, 3, 0, True),
    ("三个红色", 4, 0, 4, True),
    ("三个红", 3, 0, 3, False),
    ("三个，红！", 5, 0, 3, False),
    ("三个红色的圆形，背景是蓝色的。", 15, 0, 13, True),
    ("iPhone手机壳，red", 13, 2, 3, False),
    ("iPhone 手机壳 红色", 13, 1, 5, True),
    ("Nike 跑鞋", 7, 1, 2, False),
    ("red 红 dress 裙 on sale", 21, 4, 2, True),
    ("人々〇", 3, 0, 3, False),
    ("ქართული ენა არის", 16, 3, 0, True),
    ("አማርኛ ነው በጣም", 11, 3, 0, True),
    ("тихий летний вечер", 18, 3, 0, True),
    ("हिन्दी में यह", 13, 3, 0, True),
    ("བོད་ཡིག ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ", 18, 3, 0, True),
    ("ひらがな １２３ ½ Ⅳ ①", 14, 5, 0, True),
    ("© ™ — ★ … 😀 \u0301 \u200b", 15, 0, 0, False),
    ("word " * 257, 1285, 257, 0, False),
    ("word " * 200, 1000, 200, 0, True),
    ("红" * 512, 512, 0, 512, True),
    ("红" * 513, 513, 0, 513, False),
    ("-" * 300, 300, 0, 0, False),
]


def table(*captions: str | None) -> pa.Table:
    return pa.table(
        {"caption": pa.chunked_array([pa.array(captions, pa.large_string()), pa.array([], pa.large_string())])}
    )


@pytest.mark.parametrize(("caption", "chars", "words", "han", "kept"), CASES)
def test_cases(caption: str, chars: int, words: int, han: int, kept: bool) -> None:
    scores = TextLength().score(table(caption))
    assert {name: column.to_pylist() for name, column in scores.items()} == {
        "chars": [chars],
        "words": [words],
        "han": [han],
    }
    assert {name: column.type for name, column in scores.items()} == TextLength().scores
    assert TextLength().keep(pa.table(scores)).to_pylist() == [kept]


def test_null_is_not_scored() -> None:
    scores = TextLength().score(table(None, "a red cat"))
    assert scores["words"].to_pylist() == [None, 3]
    assert TextLength().keep(pa.table(scores)).to_pylist() == [None, True]


def test_no_rows() -> None:
    empty = pa.table({"caption": pa.chunked_array([], pa.large_string())})
    assert TextLength().keep(pa.table(TextLength().score(empty))).to_pylist() == []


@pytest.mark.parametrize(
    ("low", "high"), [("min_chars", "max_chars"), ("min_words", "max_words"), ("min_han", "max_han")]
)
def test_an_impossible_range_is_refused(low: str, high: str) -> None:
    with pytest.raises(ValidationError, match=rf"{low} \(9\) is greater than {high} \(8\)"):
        TextLength(**{low: 9, high: 8})


@given(st.text())
def test_counts_agree_with_python(caption: str) -> None:
    scores = TextLength().score(table(caption))
    assert scores["chars"].to_pylist() == [len(caption)]
    assert scores["words"].to_pylist()[0] <= len(caption)
    assert scores["han"].to_pylist()[0] <= len(caption)


@given(st.lists(st.text("abc", min_size=1), max_size=8))
def test_words_are_what_spaces_part(words: list[str]) -> None:
    assert TextLength().score(table(" ".join(words)))["words"].to_pylist() == [len(words)]


@given(st.text("红色的圆形，a "), st.integers(0, 8), st.integers(1, 5))
def test_loosening_never_drops(caption: str, words: int, han: int) -> None:
    scores = pa.table(TextLength().score(table(caption)))
    strict = TextLength(min_words=words + 1, min_han=han + 1)
    loose = TextLength(min_words=words, min_han=han)
    assert loose.keep(scores).to_pylist()[0] or not strict.keep(scores).to_pylist()[0]


def test_thresholds_are_no_part_of_the_score() -> None:
    assert TextLength(min_words=1, max_chars=9).fingerprint() == TextLength().fingerprint()
