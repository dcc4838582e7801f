"""Patterns of input names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.globs import compile_stars, expand_braces, is_pattern, split_root


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{00..03}.tar", ["00.tar", "01.tar", "02.tar", "03.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{en,zh}/{0..1}.tar", ["en/0.tar", "en/1.tar", "zh/0.tar", "zh/1.tar"]),
        ("x{,-b}", ["x", "x-b"]),
        ("{7..7}*", ["7*"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert list(expand_braces(pattern)) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{3..1}", "runs downwards"),
        ("{a..c}", "neither a range"),
        ("{a}", "neither a range"),
        ("{1..2", "do not match"),
        ("1..2}", "do not match"),
        ("{a,{b,c}}", "do not match or are nested"),
        ("{0..99999999999}", "at most"),
        ("{0..9999}{0..9999}", "at most"),
    ],
)
def test_braces_that_cannot_be_meant(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_braces(pattern)


@given(st.integers(0, 3000), st.integers(0, 300), st.integers(1, 6))
def test_ranges_are_as_wide_as_their_first_number(first: int, count: int, width: int) -> None:
    names = list(expand_braces(f"{{{first:0{width}d}..{first + count}}}"))
    assert [int(name) for name in names] == list(range(first, first + count + 1))
    assert all(len(name) >= width for name in names)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.tar", ["a.tar", ".tar"], ["a/b.tar", "a.tar.gz"]),
        ("a?.tar", ["ab.tar", "a\n.tar"], ["a.tar", "a/.tar"]),
        ("**/*.tar", ["a.tar", "x/a.tar", "x/y/a.tar"], ["a.tarx"]),
        ("x/**", ["x/a", "x/y/z"], ["y/a"]),
        ("[a-c]1", ["a1", "c1"], ["d1", "/1"]),
        ("[!a]1", ["b1"], ["a1", "/1"]),
        ("[[^]1", ["[1", "^1"], ["a1"]),
        ("a[b", ["a[b"], ["ab"]),
        ("a.t(r|x", ["a.t(r|x"], ["axt(r|x"]),
    ],
)
def test_stars(pattern: str, yes: list[str], no: list[str]) -> None:
    stars = compile_stars(pattern)
    assert [name for name in [*yes, *no] if stars.match(name)] == yes


def test_a_set_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match=re.escape("'[z-a]' cannot be understood")):
        compile_stars("[z-a]")


@pytest.mark.parametrize(
    ("pattern", "root", "rest"),
    [
        ("/data/x/{0..3}.tar", "/data/x", "{0..3}.tar"),
        ("/data/*/y/{0..3}.tar", "/data", "*/y/{0..3}.tar"),
        ("/{a,b}/*.tar", "/", "{a,b}/*.tar"),
        ("*.tar", ".", "*.tar"),
        ("s3://bucket/p/*.tar", "s3://bucket/p", "*.tar"),
    ],
)
def test_the_root_is_the_longest_plain_folder(pattern: str, root: str, rest: str) -> None:
    assert is_pattern(pattern)
    assert split_root(pattern) == (root, rest)
