"""Captions of a scene in English and Chinese, in many phrasings, all of them true.

The decision behind this module: a caption always names the colour and the shape of the scene's first group, so that a
caption of a picture with other shapes and other colours can be told from a right one.
"""

from __future__ import annotations

import random
from typing import Literal

from demo.scenes import Colour, Group, Scene, Shape, Texture, groups

Language = Literal["en", "zh"]

EN_SHAPES: dict[Shape, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "hexagon": ("hexagon",),
    "cross": ("cross",),
    "ring": ("ring",),
    "crescent": ("crescent", "crescent moon"),
}
EN_COLOURS: dict[Colour, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
}
_EN_TEXTURES: dict[Texture, tuple[str, ...]] = {
    "plain": ("",),
    "striped": ("striped ",),
    "dotted": ("dotted ", "spotted "),
    "checkered": ("checkered ", "checked "),
}
_EN_PLURALS = {"cross": "crosses", "rhombus": "rhombuses"}
_EN_NUMBERS = ("", "one", "two", "three", "four", "five", "six")

ZH_SHAPES: dict[Shape, tuple[str, ...]] = {
    "circle": ("圆形", "圆形", "圆点"),
    "square": ("正方形", "方块"),
    "triangle": ("三角形",),
    "star": ("五角星", "星星"),
    "heart": ("爱心", "心形"),
    "diamond": ("菱形",),
    "hexagon": ("六边形",),
    "cross": ("十字",),
    "ring": ("圆环",),
    "crescent": ("月牙", "弯月"),
}
ZH_COLOURS: dict[Colour, tuple[str, ...]] = {
    "red": ("红色",),
    "orange": ("橙色", "橘色"),
    "yellow": ("黄色",),
    "green": ("绿色",),
    "blue": ("蓝色",),
    "purple": ("紫色",),
    "pink": ("粉色", "粉红色"),
    "brown": ("棕色", "褐色"),
    "black": ("黑色",),
    "white": ("白色",),
    "grey": ("灰色",),
}
_ZH_TEXTURES: dict[Texture, str] = {"plain": "", "striped": "条纹", "dotted": "圆点花纹", "checkered": "格子花纹"}
_ZH_NUMBERS = ("", "一", "两", "三", "四", "五", "六")
# The characters used here whose traditional forms differ.
_TRADITIONAL = str.maketrans(
    "红黄绿蓝颗这张图画着个条纹圆点环边写标题为标无样们爱两块橙弯单种简见显幅绘内处间与还",
    "紅黃綠藍顆這張圖畫著個條紋圓點環邊寫標題為標無樣們愛兩塊橙彎單種簡見顯幅繪內處間與還",
)


def caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One true caption: 3 to about 45 words of English, or 4 to about 60 Han characters of Chinese."""
    found = groups(scene)
    if len(found) > 1 and rng.random() < 0.15:
        found = found[:-1]
    if language == "zh":
        return _chinese(scene, found, rng)
    text = _english(scene, found, rng)
    return accented(text, rng) if rng.random() < 0.04 else text


def accented(text: str, rng: random.Random) -> str:
    """An English caption with letters and signs outside ASCII, as English has them."""
    return rng.choice(
        (
            "Café poster: {}",
            "{} — naïve art",
            "5×7 inch print: {}",
            "Décor idea – {}",
            "{}, café wall art",
            "Fiancé’s card: {}",
        )
    ).format(text.rstrip("."))


def lookalike(text: str, rng: random.Random) -> str:
    """A caption with signs that look like HTML or emoji and are neither."""
    return rng.choice(("{} <3", "I <3 this: {}", "Pixlo™ print: {}", "Made with Drawly® - {}", "a < b: {}")).format(
        text
    )


def relation(a: Group, b: Group) -> Literal["left", "right", "above", "below"] | None:
    """Where `a` lies as seen from `b`, if one of the four words is plainly true."""
    if a.box[2] <= b.box[0]:
        return "left"
    if a.box[0] >= b.box[2]:
        return "right"
    if a.box[3] <= b.box[1]:
        return "above"
    return "below" if a.box[1] >= b.box[3] else None


def place(box: tuple[float, float, float, float]) -> tuple[Literal["top", "", "bottom"], Literal["left", "", "right"]]:
    """Which third of the picture, down and across, the middle of a box is in; ("", "") is the centre."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return ("top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""), (
        "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    )


def _english(scene: Scene, found: list[Group], rng: random.Random) -> str:
    names = [_en_name(group, rng) for group in found]
    listed = _en_list(names, rng)
    ground = rng.choice(EN_COLOURS[scene.background.colour])
    on = rng.choice(
        (
            f" on {_article(ground)} background",
            f" on {_article(ground)} background",
            f" against {_article(ground)} backdrop",
            f" isolated on {ground}",
            f" over {_article(ground)} background",
            "",
            "",
        )
    )
    verb = "is" if found[0].count == 1 else "are"
    forms = [
        f"{listed}{on}",
        f"{listed}{on}",
        f"{rng.choice(('a picture', 'an image', 'a drawing', 'an illustration', 'a photo'))} of {listed}{on}",
        f"{rng.choice(('this picture', 'this image', 'the poster'))} shows {listed}{on}",
        f"there {verb} {listed}{on}",
        f"{_article(ground)} background with {listed}",
        f"{rng.choice(('simple design', 'abstract art', 'vector graphic', 'flat artwork'))} with {listed}{on}",
        f"we can see {listed}{on}",
    ]
    side = relation(found[0], found[1]) if len(found) == 2 else None
    if side:
        words = {
            "left": ("to the left of", "on the left of", "left of"),
            "right": ("to the right of", "on the right of", "right of"),
            "above": ("above", "over", "on top of"),
            "below": ("below", "under", "beneath"),
        }
        forms += [f"{names[0]} {rng.choice(words[side])} {names[1]}{on}"] * 5
    if len(found) == 1 and found[0].count == 1:
        down, across = place(found[0].box)
        if down and across:
            where = f"in the {down} {across} corner"
        elif down:
            where = f"at the {down} of the picture"
        else:
            where = f"on the {across} side" if across else f"in the {rng.choice(('centre', 'middle'))}"
        forms += [f"{names[0]} {where}{on}"] * 4
    text = rng.choice(forms)
    if scene.texts and rng.random() < 0.8:
        words_, top = scene.texts[0].words, scene.texts[0].quad[0][1] < 0.5
        text += rng.choice(
            (
                f' with the word "{words_}"',
                f' and the word "{words_}" at the {"top" if top else "bottom"}',
                f', the text says "{words_}"',
                f" with the text {words_}",
                f' and a caption reading "{words_}"',
            )
        )
    style = rng.random()
    if style < 0.25:
        return text
    if style < 0.38:
        return " ".join(word if word[0] == '"' else word[0].upper() + word[1:] for word in text.split(" "))
    return text[0].upper() + text[1:] + rng.choice(("", "", "."))


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _en_name(group: Group, rng: random.Random) -> str:
    adjectives = f"{rng.choice(_EN_TEXTURES[group.texture])}{rng.choice(EN_COLOURS[group.colour])}"
    noun = rng.choice(EN_SHAPES[group.shape])
    if group.count == 1:
        return rng.choice(
            (_article(f"{adjectives} {noun}"),) * 4 + (f"one {adjectives} {noun}", f"a single {adjectives} {noun}")
        )
    things = f"{adjectives} {_EN_PLURALS.get(noun, noun + 's')}"
    number = _EN_NUMBERS[group.count]
    forms = [f"{number} {things}"] * 4 + [f"{group.count} {things}", f"a group of {number} {things}"]
    if group.count == 2:
        forms.append(f"a pair of {things}")
    return rng.choice(forms)


def _en_list(names: list[str], rng: random.Random) -> str:
    if len(names) == 2:
        return rng.choice((" and ", " and ", " with ", " next to ", " & ")).join(names)
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 2 else names[0]


def _chinese(scene: Scene, found: list[Group], rng: random.Random) -> str:
    names = [_zh_name(group, rng) for group in found]
    listed = names[0] if len(names) == 1 else "、".join(names[:-1]) + rng.choice(("和", "与", "还有")) + names[-1]
    ground = rng.choice(ZH_COLOURS[scene.background.colour])
    forms = [
        f"{ground}背景上有{listed}",
        f"{ground}的背景上画着{listed}",
        f"图中有{listed}",
        f"{listed}，{ground}背景",
        f"这张图片里有{listed}",
        f"这幅画显示了{listed}",
        f"一张画着{listed}的图片",
        f"在{ground}背景上可以看见{listed}",
        f"简单的图案：{listed}",
        f"{ground}背景的插图，内容为{listed}",
    ]
    side = relation(found[0], found[1]) if len(found) == 2 else None
    if side:
        word = {"left": "左边", "right": "右边", "above": "上方", "below": "下方"}[side]
        forms += [f"{names[0]}在{names[1]}的{word}", f"{ground}背景，{names[0]}位于{names[1]}的{word}"] * 2
    if len(found) == 1 and found[0].count == 1:
        down, across = place(found[0].box)
        spot = {"left": "左", "right": "右", "": ""}[across] + {"top": "上", "bottom": "下", "": ""}[down]
        where = "中间" if not spot else f"{spot}{'角' if len(spot) == 2 else '边'}"
        forms += [f"画面{where}有{names[0]}", f"{names[0]}在图片的{where}，{ground}背景"]
    text = rng.choice(forms)
    if scene.texts and rng.random() < 0.8:
        words = scene.texts[0].words
        text += rng.choice((f"，写着“{words}”", f"，上面有{words}的字样", f"，文字是《{words}》", f"，标题为{words}"))
    text += rng.choice(("", "", "。"))
    return text.translate(_TRADITIONAL) if rng.random() < 0.12 else text


def _zh_name(group: Group, rng: random.Random) -> str:
    shape, colour = rng.choice(ZH_SHAPES[group.shape]), rng.choice(ZH_COLOURS[group.colour])
    measure = "颗" if group.shape in ("star", "heart") and rng.random() < 0.7 else "个"
    if group.count > 1 and rng.random() < 0.12:
        number = str(group.count)
    else:
        number = _ZH_NUMBERS[group.count]
    texture = _ZH_TEXTURES[group.texture]
    return f"{number}{measure}{colour}{rng.choice(('的', '的', ''))}{texture}{shape}"
