"""Texts that are taken one by one come out as Arrow's kernels make them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from filters import patterns, replacing
from filters.pattern_defaults import DEFAULT_RULES
from filters.pattern_rules import PatternRule

RULES = [rule for rule in DEFAULT_RULES if rule.pattern is not None]
# What the default rules look for, in any order and amid anything.
PIECES = st.sampled_from(
    [
        "(",
        ")",
        "[",
        "]",
        "（",
        "）",
        "【",
        "】",
        "photo",
        "Photo:",
        "by",
        "credit",
        "©",
        "®",
        "(c)",
        "2019",
        "IMG_1234",
        ".jpg",
        "Getty",
        "Images",
        "www.a-b.com",
        "http://x.y/z",
        "??",
        "!!",
        "...",
        "$12.50",
        "price:",
        "图片来源",
        "价格",
        "元",
        "stock",
        "image",
        "|",
        "-",
        "–",
        "—",
        ",",
        ".",
        ":",
        ";",
        "/",
        "'",
        '"',
        "“",
        "”",
        "é",
        "Ä",
        "́",
        "\u200d",
        "😀",
        "👩\u200d🚀",
        "\x00",
        "\n",
        "\xa0",
        "İ",
        "ß",
        "ſ",
        "K",
        "\\1",
        "\\",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map(" ".join)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
@example(
    texts=["(Photo by A. Person/Getty Images) a dog IMG_1234.jpg", "", "【图片来源：网络】 一只狗", "\\1 (c) 2019"]
)
def test_default_rules(rule: PatternRule, texts: list[str]) -> None:
    column = pa.array(texts, pa.large_string())
    found = pc.match_substring_regex(column, rule.regex)
    assert replacing.matches(column, rule.regex).tolist() == found.to_pylist()
    expected = pc.replace_substring_regex(column, rule.regex, rule.replace)
    assert replacing.replace(column, rule.regex, rule.replace).to_pylist() == expected.to_pylist()
    gate = patterns._GATES.get(rule.regex)
    if gate is not None:  # what matches passes its gate
        assert pc.all(pc.or_(pc.invert(found), pc.match_substring_regex(column, gate))).as_py()


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(a)|(b)", r"[\2\1]"),
        (r"a+", r"\0\0"),
        (r"^a|b$", r"x"),
        (r"\ba", r"\\"),
        (r"(?i)É", r"e"),
        (r"(x)(y)?", r"\1-\2\\\\1"),
        (r"aa", r"b"),
        (r".", r"é"),
    ],
)
@settings(deadline=None)
@given(texts=st.lists(st.text(alphabet="abxyéÉ \\1\n中", max_size=12), min_size=1, max_size=6))
def test_any_rule(pattern: str, replacement: str, texts: list[str]) -> None:
    column = pa.array(texts, pa.large_string())
    expected = pc.replace_substring_regex(column, pattern, replacement)
    assert replacing.replace(column, pattern, replacement).to_pylist() == expected.to_pylist()


def test_gates_let_through_what_matches() -> None:
    names = [
        "holiday.png",
        "IMG_1234",
        "a-b-c.jpeg",
        "deadbeefdeadbeefdeadbeefdeadbeef",
        "stock-photo-a",
        "abc_de-fgh_ijk.webp",
    ]
    shapes = [*names, *(f"image: {name}" for name in names), *(f"A red dog {name}" for name in names)]
    credits = ["(photo by A)", "A dog 【图片来源：网络】", "A dog. © A. Person", "A dog. Photo by Jo Doe/Reuters"]
    credits += [
        "A dog. Photo: Jo Doe",
        "A dog. Photo by Jo Doe",
        "A dog Photo by Jo Doe",
        "A dog, see www.a.com",
        "一只狗。图源：网络",
    ]
    column = pa.array([*shapes, *credits], pa.large_string())
    for pattern, gate in patterns._GATES.items():
        found = pc.match_substring_regex(column, pattern)
        assert pc.sum(found).as_py() >= 1
        assert pc.all(pc.or_(pc.invert(found), pc.match_substring_regex(column, gate))).as_py(), gate


def test_a_gate_is_for_the_rule_as_it_is_built_in() -> None:
    """The same pattern, told to ignore case, matches what its gate would not let through."""
    rule = next(rule for rule in DEFAULT_RULES if rule.name == "credit_copyright")
    loose = patterns.Patterns(rules=(rule.model_copy(update={"ignore_case": True}),))
    column = pa.array(["A DOG. ALL RIGHTS RESERVED"] * (patterns._FEW + 1), pa.large_string())
    cleaned, _ = loose.rewrite(column)
    assert set(cleaned.to_pylist()) == {"A DOG."}


def test_real_captions_come_out_as_by_kernels_alone(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        text
        for path in sorted((shared_data / "pairs_text").glob("*.parquet"))
        for text in pq.read_table(path, columns=["caption"]).column("caption").to_pylist()[:1500]
    ]
    column = pa.array(texts, pa.large_string())
    mapper = patterns.Patterns()
    cleaned, hits = mapper.rewrite(column)
    monkeypatch.setattr(patterns, "_FEW", 0)
    monkeypatch.setattr(patterns, "_GATES", {})
    assert mapper.rewrite(column) == (cleaned, hits)


def test_nulls_match_nothing() -> None:
    assert replacing.matches(pa.array(["a", None, ""], pa.large_string()), "a").tolist() == [True, False, False]


def test_many_and_few_are_rewritten_alike() -> None:
    """The mapper goes one way for a large column and another for a small one."""
    texts = [
        f"({'Photo by Ann Other' if n % 7 else 'inset'}) a dog number {n}!!  IMG_{1000 + n}.jpg" for n in range(3_000)
    ]
    mapper = patterns.Patterns()
    many, hits = mapper.rewrite(pa.array(texts, pa.large_string()))
    few = [mapper.rewrite(pa.array(texts[at : at + 500], pa.large_string())) for at in range(0, 3_000, 500)]
    assert many.to_pylist() == [text for part, _ in few for text in part.to_pylist()]
    assert hits == {name: sum(found[name] for _, found in few) for name in hits}
