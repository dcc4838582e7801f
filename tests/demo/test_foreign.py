from __future__ import annotations

import random
import unicodedata

import pytest

from demo.foreign import LATIN, OTHER_SCRIPTS, TONGUES, foreign_caption
from demo.scenes import groups, sample_scene, sample_size

SCRIPTS = {
    "ja": ("HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "th": ("THAI",),
    "hi": ("DEVANAGARI",),
    "el": ("GREEK",),
}


def test_there_are_ten_latin_languages_and_seven_scripts() -> None:
    assert set(LATIN) == {"de", "fr", "es", "it", "pt", "nl", "pl", "tr", "id", "vi"}
    assert set(OTHER_SCRIPTS) == set(SCRIPTS)


@pytest.mark.parametrize("code", TONGUES)
def test_every_sentence_is_complete_and_in_its_script(code: str) -> None:
    for seed in range(200):
        rng = random.Random(seed)
        text = foreign_caption(sample_scene(rng, sample_size(rng)), code, rng)
        letters = [unicodedata.name(c) for c in text if c.isalpha()]
        assert len(letters) >= 8
        assert "{" not in text
        assert "_" not in text
        if code in LATIN:
            assert all(name.startswith("LATIN") for name in letters)
        else:
            assert any(name.startswith(SCRIPTS[code]) for name in letters), text


@pytest.mark.parametrize("code", TONGUES)
def test_sentences_name_the_first_shape(code: str) -> None:
    for seed in range(50):
        rng = random.Random(seed)
        scene = sample_scene(rng, sample_size(rng))
        noun = TONGUES[code].nouns[groups(scene)[0].shape][1]
        assert noun.lower() in foreign_caption(scene, code, rng).lower()


@pytest.mark.parametrize(
    ("code", "shape", "colour", "phrase"),
    [
        ("de", "star", "red", "ein roter Stern"),
        ("de", "diamond", "white", "eine weiße Raute"),
        ("de", "heart", "blue", "ein blaues Herz"),
        ("fr", "star", "white", "une étoile blanche"),
        ("es", "cross", "red", "una cruz roja"),
        ("pl", "star", "black", "czarna gwiazda"),
        ("ru", "heart", "blue", "синее сердце"),
        ("el", "heart", "red", "μία κόκκινη καρδιά"),
        ("ar", "circle", "red", "دائرة حمراء"),
    ],
)
def test_adjectives_agree(code: str, shape: str, colour: str, phrase: str) -> None:
    tongue = TONGUES[code]
    gender, noun = tongue.nouns[shape]  # type: ignore[index]
    assert tongue.phrase[gender].format(n=noun, c=tongue.colours[colour][gender]) == phrase  # type: ignore[index]
