from __future__ import annotations

import html
import random
import re

import pytest

from demo.captions import Language, caption
from demo.defects import DIRT
from demo.dirt import EMOJI, emoji_caption, long_caption, mojibake, short_caption, spoil
from demo.scenes import Scene, sample_scene, sample_size

KINDS = [d.name for d in DIRT if d.name != "lookalike"]


def clean(seed: int) -> tuple[str, Language, random.Random, Scene]:
    rng = random.Random(seed)
    scene = sample_scene(rng, sample_size(rng))
    language: Language = "zh" if seed % 4 == 0 else "en"
    return caption(scene, language, rng), language, rng, scene


def spoiled(kind: str, seeds: int = 150) -> list[tuple[str, str]]:
    pairs = []
    for seed in range(seeds):
        text, language, rng, _ = clean(seed)
        pairs.append(spoil(kind, text, language, rng))
    return pairs


@pytest.mark.parametrize("kind", KINDS)
def test_dirt_shows_and_the_clean_caption_is_clean(kind: str) -> None:
    for expected, text in spoiled(kind):
        assert text != expected
        assert expected == " ".join(expected.split())
        assert "{" not in expected


@pytest.mark.parametrize("kind", ["url", "file_name", "photo_credit", "boilerplate", "price_sku"])
def test_tails_and_prefixes_leave_the_caption_whole(kind: str) -> None:
    assert all(expected in text for expected, text in spoiled(kind))


MARKS = {
    "html_tags": r"<[a-zA-Z!/]",
    "html_entities": r"&(#x?[0-9a-f]+|[a-z]+);",
    "double_escaped": r"&(amp|lt);",
    "url": r"https?://|www\.|@",
    "file_name": r"(IMG|DSC|DSCF|P)_?\d{3}|(shutterstock|istock)[-_]\d",
    "photo_credit": r"(?i)photo|image|credit|©|图|摄影",
    "boilerplate": r"[\[(（【].+[\])）】]",
    "price_sku": r"[$£¥￥]\s*\d|SKU|Item|Model|货号|型号|元",
    "repeated_punctuation": r"([!！。~=-])\1{3}",
    "zero_width": "[\u200b\ufeff\u2060\u00ad\u200e\u200c\x07\x08]",
}


@pytest.mark.parametrize("kind", MARKS)
def test_each_kind_is_what_it_says(kind: str) -> None:
    for _, text in spoiled(kind):
        assert re.search(MARKS[kind], text), text


def test_zero_width_and_white_space_change_no_visible_character() -> None:
    for expected, text in spoiled("zero_width"):
        assert re.sub(MARKS["zero_width"], "", text) == expected
    for expected, text in spoiled("white_space"):
        assert " ".join(text.split()) == expected


def test_entities_unescape_to_the_caption_once_and_twice() -> None:
    for expected, text in spoiled("html_entities"):
        assert html.unescape(text).replace("\u00a0", " ") == expected
    for expected, text in spoiled("double_escaped"):
        twice = html.unescape(html.unescape(text)).replace("\u00a0", " ")
        assert re.sub(r"</?[bpi]>", "", twice) == expected


def test_mojibake_is_utf8_read_as_windows_1252() -> None:
    assert mojibake("Café — 红") == "CafÃ© â€” çº¢"
    for expected, text in spoiled("mojibake"):
        read = b"".join(c.encode("cp1252") if _in_cp1252(c) else c.encode("latin-1") for c in text)
        assert read.decode() == expected


def _in_cp1252(character: str) -> bool:
    try:
        character.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def test_emoji_captions_have_emoji_as_unicode_means_it() -> None:
    emoji = pytest.importorskip("emoji", reason="the extra `curate` has it")
    assert all(emoji.emoji_count(sign) >= 1 for sign in EMOJI)
    for seed in range(100):
        text, _, rng, _ = clean(seed)
        assert emoji.emoji_count(emoji_caption(text, rng)) >= 1


def test_short_and_long_captions_are_beyond_the_limits() -> None:
    for seed in range(60):
        _, language, rng, scene = clean(seed)
        short = short_caption(scene, language, rng)
        if language == "en":
            assert len(short.split()) < 3 or len(short) < 6
        else:
            assert len(re.findall(r"[\u4e00-\u9fff]", short)) < 4
        for least in (1100, 12_000):
            assert least <= len(long_caption(scene, language, rng, least)) <= 2 * least + 6000


def test_a_lookalike_is_expected_as_it_is() -> None:
    assert all(expected == text for expected, text in spoiled("lookalike"))
