from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from demo.captions import EN_COLOURS, EN_SHAPES, ZH_COLOURS, ZH_SHAPES, caption, lookalike, place, relation
from demo.scenes import Group, Scene, groups, sample_scene, sample_size

SEEDS = range(1500)
NUMBERS = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "pair of": 2}
ZH_NUMBERS = {"一": 1, "两": 2, "兩": 2, "三": 3, "四": 4, "五": 5, "六": 6}
# Longest first, so that "crescent moon" is not read as "crescent".
EN_SHAPE = {
    form: shape for shape, names in EN_SHAPES.items() for name in names for form in (name, name + "s", name + "es")
}
EN_COLOUR = {name: colour for colour, names in EN_COLOURS.items() for name in names}


def made(seed: int) -> Scene:
    rng = random.Random(seed)
    return sample_scene(rng, sample_size(rng))


def alternatives(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


PHRASE = re.compile(
    rf"\b(pair of|single|one|two|three|four|five|six|[1-6]|an?) (?:(?:striped|dotted|spotted|checkered|checked) )?"
    rf"({alternatives(EN_COLOUR)}) ({alternatives(EN_SHAPE)})\b"
)


def test_english_counts_colours_and_shapes_are_those_of_the_scene() -> None:
    for seed in SEEDS:
        scene = made(seed)
        text = caption(scene, "en", random.Random(seed)).lower()
        found = PHRASE.findall(text)
        assert found, text
        known = {(g.count, g.colour, g.shape) for g in groups(scene)}
        for number, colour, shape in found:
            count = NUMBERS.get(number) or int(number)
            assert (count, EN_COLOUR[colour], EN_SHAPE[shape]) in known, (text, known)
        main = groups(scene)[0]
        assert (main.colour, main.shape) in {(EN_COLOUR[c], EN_SHAPE[s]) for _, c, s in found}


def test_english_backgrounds_words_and_sides_are_those_of_the_scene() -> None:
    sides = 0
    for seed in SEEDS:
        scene = made(seed)
        text = caption(scene, "en", random.Random(seed))
        for colour in re.findall(rf"(?i)\b({alternatives(EN_COLOUR)}) (?:background|backdrop)", text):
            assert EN_COLOUR[colour.lower()] == scene.background.colour
        for word in re.findall(r'"([A-Z]+)"', text):
            assert word == scene.texts[0].words
        if match := re.search(
            r"(?i) (to the left of|to the right of|above|below|beneath) (?:an?|one|two|three|[1-6])", text
        ):
            a, b = groups(scene)[:2]
            word = {"to the left of": "left", "to the right of": "right", "beneath": "below"}
            assert relation(a, b) == word.get(match[1].lower(), match[1].lower()), text
            sides += 1
    assert sides > 50


def test_chinese_counts_colours_and_shapes_are_those_of_the_scene() -> None:
    simple = str.maketrans("紅黃綠藍顆條紋圓點環兩塊邊彎愛", "红黄绿蓝颗条纹圆点环两块边弯爱")
    colours = {name: colour for colour, names in ZH_COLOURS.items() for name in names}
    shapes = {name: shape for shape, names in ZH_SHAPES.items() for name in names}
    phrase = re.compile(
        rf"([一两三四五六1-6])[个個颗]({alternatives(colours)})的?(?:条纹|圆点花纹|格子花纹)?({alternatives(shapes)})"
    )
    for seed in SEEDS:
        scene = made(seed)
        text = caption(scene, "zh", random.Random(seed)).translate(simple)
        found = phrase.findall(text)
        assert found, text
        known = {(g.count, g.colour, g.shape) for g in groups(scene)}
        for number, colour, shape in found:
            assert (ZH_NUMBERS.get(number) or int(number), colours[colour], shapes[shape]) in known, (text, known)
        for colour in re.findall(rf"({alternatives(colours)})的?背景", text):
            assert colours[colour] == scene.background.colour


def test_clean_captions_are_of_a_length_that_is_kept() -> None:
    for seed in SEEDS:
        english, chinese = (caption(made(seed), la, random.Random(seed)) for la in ("en", "zh"))
        assert 3 <= len(english.split()) <= 60
        assert 6 <= len(english) <= 400
        assert 4 <= len(re.findall(r"[\u4e00-\u9fff]", chinese)) <= 120
        assert english == " ".join(english.split())
        assert "{" not in english + chinese


def test_phrasings_vary() -> None:
    scene = made(11)
    for language in ("en", "zh"):
        assert len({caption(scene, language, random.Random(i)) for i in range(200)}) > 80


@pytest.mark.parametrize(
    ("box", "spot"),
    [
        ((0.0, 0.0, 0.2, 0.2), ("top", "left")),
        ((0.4, 0.4, 0.6, 0.6), ("", "")),
        ((0.8, 0.4, 1.0, 0.6), ("", "right")),
        ((0.4, 0.8, 0.6, 1.0), ("bottom", "")),
    ],
)
def test_place(box: tuple[float, float, float, float], spot: tuple[str, str]) -> None:
    assert place(box) == spot


def test_relation_is_silent_where_things_overlap() -> None:
    a = Group(1, "star", "red", "plain", (0.1, 0.1, 0.5, 0.5))
    b = Group(1, "ring", "blue", "plain", (0.4, 0.4, 0.9, 0.9))
    assert relation(a, b) is None


def test_a_lookalike_holds_the_caption() -> None:
    for seed in range(20):
        assert "a red star" in lookalike("a red star", random.Random(seed))
