"""Characters decide first, a detector only where letters cannot; nobody loses plain English or Chinese."""

import csv
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.base import RuleError
from filters.detectors import detector_fingerprint, load_detector, verdict
from filters.language import Language, japanese_characters

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
DETECTORS = ["fasttext", "langdetect"]

KEPT = [
    "a cat, a dog & 3 birds - 50% off!",
    "a café with jalapeños, crème brûlée and smörgåsbord in São Paulo",
    "naïve façade, El Niño, Ångström, æsthetic, œuvre",
    "cafe\u0301 in two code points",
    "“quotes” – dashes — … ‘x’ • ™ © ® € £ ¥ ° ² ½ × ÷ ± ≤ → ★ ♪ ✓ № ℃ Ⅻ ①",
    "5 μm, π and 3 Ω, 7 μΩ",
    "an α particle, β-carotene, Δt, Σ γ δ, 10 Å, 维生素β",
    "三个红色的圆形，背景是蓝色的。",
    "三個紅色的圓形，後面是藍色的背景。",
    "「引号」『书名』《红楼梦》【新品】〈一〉、１２３ＡＢＣ，％～￥",
    "人々〇，㎡ ㊗ ㈠ ㄅㄆㄇ ・",
    "𠮷野家的門口",
    "iPhone 手机壳 red",
    "emoji 😀 👨\u200d👩\u200d👧 ❤\ufe0f 🇩🇪 1\ufe0f\u20e3 🏴\U000e0067\U000e0062\U000e007f are another filter's business",
    "",
]
FOREIGN = [
    ("赤い丸が三つあります", 7),
    ("カメラ", 3),
    ("ｶﾒﾗ", 3),
    ("빨간 원 세 개", 5),
    ("Три красных круга", 15),
    ("ثلاث دوائر", 9),
    ("τρεις κύκλοι", 11),
    ("μία Δελτα ή ο α", 8),
    ("αβγ", 3),
    ("สามวงกลม", 8),
    ("तीन", 3),
    ("Größe", 1),
    ("trzy żółte koła", 3),
    ("Đà Nẵng", 2),
    ("Íslenska þýðing", 3),
    ("東京駅の図書館", 3),
    ("関係対応", 3),
    ("lost � character", 1),
    ("\uf0a7 private use", 1),
    ("a line with кириллица", 9),
]
SENTENCES = {
    "fr": "Une vieille maison de campagne avec des volets verts et un grand jardin derrière le mur",
    "de": "Ein alter Mann sitzt auf einer Bank im Park und liest eine Zeitung mit seinem Hund",
    "es": "Una casa antigua con ventanas verdes y un gran patio detrás de la iglesia del pueblo",
    "it": "Una vecchia casa di campagna con le finestre verdi e un grande giardino dietro il muro",
    "nl": "Een oude man zit op een bank in het park en leest een krant met zijn hond",
    "pt": "Uma casa antiga com janelas verdes e um grande jardim atrás da igreja da aldeia",
}
ENGLISH = [
    "A dog",
    "Nike Air Max 90",
    "beautiful sunset on beach",
    "Black & White Photo",
    "Kitchen cabinets",
    "Gucci Bag",
    "An old man is sitting on a bench in the park and reads a newspaper with his dog",
    "two red circles above a yellow square on a dark blue background",
    "Vintage brass desk lamp with green glass shade, 14 inch",
]


def table(*captions: str | None) -> pa.Table:
    return pa.table(
        {"caption": pa.chunked_array([pa.array(captions, pa.large_string()), pa.array([], pa.large_string())])}
    )


def kept(rule: Language, *captions: str | None) -> list[bool | None]:
    scores = rule.setup().score(table(*captions))
    assert {name: column.type for name, column in scores.items()} == rule.scores
    found: list[bool | None] = rule.keep(pa.table(dict(scores))).to_pylist()
    return found


@pytest.mark.parametrize("caption", KEPT)
def test_english_and_chinese_characters(caption: str) -> None:
    assert Language(detector="none").score(table(caption))["other_chars"].to_pylist() == [0]


@pytest.mark.parametrize(("caption", "others"), FOREIGN)
def test_other_characters_are_counted(caption: str, others: int) -> None:
    assert Language(detector="none").score(table(caption))["other_chars"].to_pylist() == [others]
    assert kept(Language(detector="none"), caption) == [False]
    assert kept(Language(detector="none", max_other_chars=others), caption) == [True]


def test_kept_languages_decide_the_characters() -> None:
    english, chinese = Language(keep=("en",), detector="none"), Language(keep=("zh",), detector="none")
    assert kept(english, "a café", "红色的圆形") == [True, False]
    assert kept(chinese, "a cafe", "a café", "红色 iPhone") == [True, False, True]
    assert Language(keep=("zh", "en", "en")) == Language()


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_detector_drops_sentences_in_other_languages(detector: str) -> None:
    rule = Language(detector=detector)
    scores = rule.score(table(*SENTENCES.values()))
    assert scores["detected"].to_pylist() == list(SENTENCES)
    assert kept(rule, *SENTENCES.values()) == [False] * len(SENTENCES)
    assert kept(Language(detector=detector, max_foreign=1), *SENTENCES.values()) == [True] * len(SENTENCES)


@pytest.mark.parametrize("detector", ["none", *DETECTORS])
def test_english_and_chinese_stay(detector: str) -> None:
    captions = [*ENGLISH, *(caption for caption in KEPT if detector == "none" or "的" in caption)]
    assert [
        caption
        for caption, keep in zip(captions, kept(Language(detector=detector), *captions), strict=True)
        if not keep
    ] == []


def test_only_captions_with_enough_letters_and_without_han_are_judged() -> None:
    captions = [
        None,
        "",
        "une maison",
        "三个红色的圆形 avec une vieille maison de campagne",
        "123 456",
        SENTENCES["fr"],
    ]
    scores = Language().score(table(*captions))
    assert scores["detected"].to_pylist() == [None, None, None, "zh", None, "fr"]
    assert [score is None for score in scores["foreign"].to_pylist()] == [True, True, True, True, True, False]
    assert kept(Language(), *captions) == [None, True, True, True, True, False]


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_score_depends_on_its_caption_alone(detector: str) -> None:
    """Neither the order nor the company nor a second asking changes a verdict."""
    captions = [*SENTENCES.values(), *ENGLISH]
    rule = Language(detector=detector, min_letters=1)
    together = rule.score(table(*captions))["foreign"].to_pylist()
    backwards = rule.score(table(*captions[::-1]))["foreign"].to_pylist()[::-1]
    alone = [rule.score(table(caption))["foreign"].to_pylist()[0] for caption in captions]
    assert together == backwards == alone


def test_a_verdict_weighs_the_kept_languages_together() -> None:
    assert verdict([("fr", 0.5), ("en", 0.3), ("zh-cn", 0.1), ("it", 0.1)], {"en", "zh"}) == ("fr", 0.1)
    assert verdict([("zh-tw", 0.9)], {"en", "zh"}) == ("zh", -0.9)
    assert verdict([], {"en"}) is None


@given(st.lists(st.none() | st.text(max_size=60), max_size=4))
def test_any_text_is_scored(captions: list[str | None]) -> None:
    scores = Language(min_letters=1).score(table(*captions))
    for caption, others, foreign in zip(
        captions, scores["other_chars"].to_pylist(), scores["foreign"].to_pylist(), strict=True
    ):
        assert (others is None) == (caption is None)
        assert caption is None or 0 <= others <= len(caption)
        assert foreign is None or -1 <= foreign <= 1


def test_texts_that_libraries_stumble_over() -> None:
    captions = ["a\nb" * 30, "a\0b" * 30, "!" * 100, "x" * 10_000, "a " * 5_000]
    for detector in DETECTORS:
        assert len(kept(Language(detector=detector, min_letters=1), *captions)) == len(captions)


def test_no_rows() -> None:
    empty = pa.table({"caption": pa.chunked_array([], pa.large_string())})
    assert Language().keep(pa.table(dict(Language().score(empty)))).to_pylist() == []


def test_japanese_characters_are_japanese_only() -> None:
    found = set(japanese_characters())
    assert found >= set("駅売図円気実関対経済働込")
    assert not found & set("的一是了我不在人有中国大学會發國裏説")
    assert 250 < len(found) < 330


def test_fingerprint_holds_what_decides_the_scores_and_no_threshold() -> None:
    assert Language(max_foreign=0.9, max_other_chars=3).fingerprint() == Language().fingerprint()
    assert Language(min_letters=30).fingerprint() != Language().fingerprint()
    assert Language(keep=("en",)).fingerprint() != Language().fingerprint()
    assert len(Language().fingerprint()["model"]) == 64
    assert detector_fingerprint("langdetect")["seed"] == 0


@pytest.mark.parametrize(
    "fields",
    [{"keep": ("fr",)}, {"keep": ()}, {"detector": "cld3"}, {"max_foreign": 2}, {"min_letters": 0}, {"kept": ("en",)}],
)
def test_wrong_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Language.model_validate(fields)


def test_a_missing_detector_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    load_detector.cache_clear()
    with pytest.raises(RuleError, match=r"pip install 'winnow-vl\[lingua\]'"):
        Language(detector="lingua").setup()


def test_lingua_where_it_is_installed() -> None:
    pytest.importorskip("lingua", reason="the extra 'lingua' is not installed")
    load_detector.cache_clear()
    assert kept(Language(detector="lingua"), *SENTENCES.values()) == [False] * len(SENTENCES)
    assert kept(Language(detector="lingua"), *ENGLISH) == [True] * len(ENGLISH)


def test_real_sentences() -> None:
    """On the labelled sentences: nearly all English and Chinese stay, nine in ten of the foreign ones go."""
    path = SHARED / "langid.tsv"
    if not path.exists():
        pytest.skip(f"{path} is not there: set WINNOW_SHARED_DATA to the folder with langid.tsv")
    with path.open(encoding="utf-8") as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if "sentence" in row["kind"]
        ]
    verdicts = kept(Language(), *(row["text"] for row in rows))
    share = {}
    for group in ("en", "zh", "foreign"):
        chosen = [
            keep
            for row, keep in zip(rows, verdicts, strict=True)
            if (row["lang"] if row["lang"] in ("en", "zh") else "foreign") == group
        ]
        share[group] = sum(1 for keep in chosen if keep) / len(chosen)
    assert share["en"] > 0.995
    assert share["zh"] > 0.995
    assert share["foreign"] < 0.10
