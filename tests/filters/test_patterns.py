"""The default rules take noise away to the last character and leave captions alone; rules are checked when read."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.html import Html
from filters.patterns import DEFAULT_RULES, PatternRule, Patterns
from tests.filters.pattern_cases import CHINESE_TAILS, ENGLISH_TAILS, REWRITTEN, UNTOUCHED

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
ENGLISH, CHINESE = "Two red circles on a blue background", "三个红色的圆形"


def rewrite(rule: Patterns, *captions: str | None) -> list[str | None]:
    found: list[str | None] = rule.rewrite(pa.array(captions, pa.large_string()))[0].to_pylist()
    return found


def one(name: str, pattern: str, replace: str = "", **settings: Any) -> Patterns:
    return Patterns(rules=(PatternRule(name=name, pattern=pattern, replace=replace, **settings),))


def test_planted_tails_vanish_without_a_trace() -> None:
    planted = [(ENGLISH + tail, ENGLISH) for tail in ENGLISH_TAILS] + [
        (CHINESE + tail, CHINESE) for tail in CHINESE_TAILS
    ]
    found = rewrite(Patterns(), *(dirty for dirty, _ in planted))
    wrong = {dirty: got for (dirty, clean), got in zip(planted, found, strict=True) if got != clean}
    assert wrong == {}


def test_stacked_tails_vanish() -> None:
    tails = [
        "- IMG_2034.JPG",
        "| Photo by Jane Doe / Getty Images",
        "- SKU: AB-1234",
        "- $19.99",
        "http://x.y/z?a=1",
        "[HD]",
        "!!!",
    ]
    stacked = [f"{ENGLISH} {first} {second}" for first in tails[:-1] for second in tails[:-1] if first != second]
    assert set(rewrite(Patterns(), *stacked)) == {ENGLISH}


def test_other_noise() -> None:
    found = rewrite(Patterns(), *(dirty for dirty, _ in REWRITTEN))
    assert found == [clean for _, clean in REWRITTEN]


def test_captions_that_only_look_like_noise_stay() -> None:
    found = rewrite(Patterns(), *UNTOUCHED)
    assert [(old, new) for old, new in zip(UNTOUCHED, found, strict=True) if old != new] == []


def test_behind_html() -> None:
    dirty = "<p>Two red circles on a blue background</p><br>&copy; 2019 Reuters &amp; Co"
    html, _ = Html().rewrite(pa.array([dirty], pa.large_string()))
    assert Patterns().rewrite(html)[0].to_pylist() == [ENGLISH]


@pytest.mark.parametrize(
    "caption",
    [
        "“引号”，（括号）：《书名》——真的……！？",
        "１２３ＡＢＣ，全角",
        "it’s “quoted” – 5 × 3 = 15 €",
        "café naïve jalapeño",
        "ﬁne ligature",
    ],
)
def test_mojibake_repair_changes_nothing_that_is_right(caption: str) -> None:
    assert rewrite(Patterns(), caption) == [caption]


@pytest.mark.parametrize("text", ["三个红色的圆形", "it’s café – naïve", "Größe Übung", "€ 5 “quoted”"])
@pytest.mark.parametrize("charset", ["cp1252", "latin-1"])
def test_mojibake_is_undone(text: str, charset: str) -> None:
    try:
        broken = text.encode("utf-8").decode(charset)
    except UnicodeDecodeError:
        pytest.skip(f"{charset} cannot have broken this text")
    assert rewrite(Patterns(), broken) == [text]


def test_emoji_sequences_survive() -> None:
    captions = ["a family 👨\u200d👩\u200d👧 here", "a heart ❤\ufe0f", "🏳\ufe0f\u200d🌈 flag", "key 1\ufe0f\u20e3"]
    assert rewrite(Patterns(), *captions) == captions
    assert rewrite(Patterns(), "red\u200d shoe \u200dx") == ["red shoe x"]


def test_nulls_hits_and_special_tags() -> None:
    captions = pa.array([None, "a cat!!", "<PERSON> with a cat!!", "a dog"], pa.large_string())
    cleaned, hits = Patterns().rewrite(captions)
    assert cleaned.to_pylist() == [None, "a cat!", None, "a dog"]
    assert cleaned.type == pa.large_string()
    assert set(hits) == {"special_tags", "unsettled", *(rule.name for rule in DEFAULT_RULES)}
    assert {name: count for name, count in hits.items() if count} == {"special_tags": 1, "repeated_punctuation": 1}


def test_special_tags_by_profile() -> None:
    captions = ["<PERSON> and <PERSON> in <LOCATION>", "the <UNK> cat", "a < b > c <3"]
    assert rewrite(Patterns(special_tags="replace"), *captions) == [
        "person and person in place",
        "the cat",
        captions[2],
    ]
    assert rewrite(Patterns(special_tags="keep"), *captions) == captions
    assert rewrite(Patterns(special_tags="drop"), *captions) == [None, None, captions[2]]


def test_rules_run_in_order_and_again_until_nothing_changes() -> None:
    rules = (PatternRule(name="b", pattern="^b"), PatternRule(name="a", pattern="^a"))
    cleaned, hits = Patterns(rules=rules).rewrite(pa.array(["abab!", "!"], pa.large_string()))
    assert cleaned.to_pylist() == ["!", "!"]
    assert hits == {"special_tags": 0, "b": 1, "a": 1, "unsettled": 0}


def test_own_rules_replace_groups_ignore_case_and_drop() -> None:
    assert rewrite(one("swap", r"(\d+)cm\b", r"\1 cm"), "5cm wide") == ["5 cm wide"]
    assert rewrite(one("case", "free shipping", ignore_case=True), "shoe FREE Shipping") == ["shoe "]
    assert rewrite(one("drop", "torrent", drop=True), "a torrent", "a cat", None) == [None, "a cat", None]


def test_a_caption_that_never_settles_is_dropped_and_counted() -> None:
    cleaned, hits = one("grow", "a", "aa").rewrite(pa.array(["cat", "dog", None], pa.large_string()))
    assert cleaned.to_pylist() == [None, "dog", None]
    assert hits["unsettled"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": r"(a)\1"}, "rule 'x': RE2 has no backreferences"),
        ({"pattern": "(?=a)b"}, "rule 'x': RE2 has no look-around"),
        ({"pattern": "(?<!a)b"}, "rule 'x': RE2 has no look-around"),
        ({"pattern": "(?>a)"}, "rule 'x': RE2 has no look-around and no atomic groups"),
        ({"pattern": "a("}, "rule 'x': not a pattern that RE2 understands (missing ): (a())"),
        ({"pattern": "x*"}, "rule 'x': the pattern matches the empty string"),
        ({"pattern": r"\b"}, "rule 'x': the pattern matches the empty string"),
        ({"pattern": "^"}, "rule 'x': the pattern matches the empty string"),
        ({"pattern": "a|"}, "rule 'x': the pattern matches the empty string"),
        ({"pattern": ""}, "rule 'x': the pattern matches the empty string"),
        (
            {"pattern": "(a)", "replace": r"\2"},
            "rule 'x': replacement '\\\\2' is wrong: Rewrite schema requests 2 matches",
        ),
        ({"pattern": "a", "replace": "\\"}, "rule 'x': replacement"),
        ({"pattern": "a", "replace": "b", "drop": True}, "rule 'x': a rule that drops the caption has no `replace`"),
        ({}, "rule 'x': give it either a `pattern` or `use: ftfy`"),
        ({"pattern": "a", "use": "ftfy"}, "rule 'x': give it either"),
        ({"use": "ftfy", "drop": True}, "rule 'x': `use: ftfy` takes no other setting"),
        ({"pattern": "a", "colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_rule_is_refused_when_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PatternRule.model_validate({"name": "x", **fields})
    assert message in caught.value.errors()[0]["msg"]
    assert "\n" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("names", [("a", "a"), ("special_tags",), ("unsettled",)])
def test_names_are_unique(names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="the name is taken"):
        Patterns(rules=tuple(PatternRule(name=name, pattern="x") for name in names))


def test_what_decides_the_captions_is_in_the_fingerprint() -> None:
    assert Patterns().fingerprint()["ftfy"]
    assert Patterns(special_tags="keep").fingerprint() != Patterns().fingerprint()
    assert "ftfy" not in one("a", "b").fingerprint()


def test_no_rows() -> None:
    assert rewrite(Patterns()) == []


def real_captions(name: str) -> pa.LargeStringArray:
    path = SHARED / "pairs_text" / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there: set WINNOW_SHARED_DATA to the folder with pairs_text")
    captions = pq.read_table(path)["caption"].cast(pa.large_string()).combine_chunks()
    return Html().rewrite(pc.utf8_slice_codeunits(captions, 0, 10_000))[0]


@pytest.mark.parametrize(("name", "most"), [("cc3m", 0.01), ("captions_zh", 0.005)])
def test_clean_real_captions_are_left_alone(name: str, most: float) -> None:
    captions = real_captions(name)
    cleaned, _ = Patterns().rewrite(captions)
    changed = pc.sum(pc.not_equal(cleaned, captions)).as_py() / len(captions)
    assert cleaned.null_count == captions.null_count
    assert changed < most


@pytest.mark.parametrize("name", ["laion2b_en", "laion400m", "html_alt", "bing_wallpaper", "ecommerce", "social"])
def test_dirty_real_captions_settle(name: str) -> None:
    once, hits = Patterns().rewrite(real_captions(name))
    assert hits["unsettled"] == 0
    assert Patterns().rewrite(once)[0].equals(once)
    assert Html().rewrite(once)[0].equals(once)


noise = st.sampled_from([*ENGLISH_TAILS, *CHINESE_TAILS, *UNTOUCHED, *(dirty for dirty, _ in REWRITTEN)])
characters = st.text('()[]（）【】|-–—,.!。，！：:/#$¥©"“” \u200b\u200d\xa0\tabAB12图摄IMG_.jpgphotobyÃâ€', max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(noise | characters | st.text(max_size=4), max_size=4).map("".join), min_size=1, max_size=40))
def test_idempotent_on_anything(captions: list[str]) -> None:
    once, _ = Patterns().rewrite(pa.array(captions, pa.large_string()))
    twice, hits = Patterns().rewrite(once)
    assert twice.equals(once)
    assert not any(hits.values())


@pytest.mark.parametrize(
    "piece",
    ["[", "()", "photo by A", " | ", "- ", "!", "http://", "a@", "IMG_", "a.jpg", "© ", "图片来源：", "(Photo: ",
     "$1", "Ã©", "\u200d", "【包邮】", "SKU: 1 ", "[HD", "] "],
)  # fmt: skip
def test_linear_time(piece: str) -> None:
    """Eight times the text takes about eight times as long (64 times would be quadratic)."""
    rule = Patterns()

    def best(length: int) -> float:
        captions = pa.array([piece * (length // len(piece))] * 4, pa.large_string())
        times = []
        for _ in range(2):
            start = time.process_time()
            rule.rewrite(captions)
            times.append(time.process_time() - start)
        return min(times)

    assert best(10_000) / best(1_250) < 32
