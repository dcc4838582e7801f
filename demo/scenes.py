"""Scenes: what is on a drawn picture, said completely, and how it is drawn.

The decision behind this module: a scene is described in fractions of the picture, so that one description is drawn at
any size, also squashed to a small square, and its boxes and quads stay true.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Shape = Literal[
    "circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "cross", "ring", "crescent"
]  # fmt: skip
Colour = Literal[
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"
]  # fmt: skip
Texture = Literal["plain", "striped", "dotted", "checkered"]
Ground = Literal["plain", "gradient", "mottled"]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]

SHAPES: tuple[Shape, ...] = (
    "circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "cross", "ring", "crescent"
)  # fmt: skip
RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (208, 36, 36),
    "orange": (244, 132, 16),
    "yellow": (246, 220, 48),
    "green": (36, 150, 58),
    "blue": (34, 78, 206),
    "purple": (124, 48, 170),
    "pink": (246, 134, 188),
    "brown": (118, 70, 34),
    "black": (20, 20, 22),
    "white": (246, 246, 246),
    "grey": (128, 130, 132),
}
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted", "checkered")
WORDS = (
    "SALE", "OPEN", "CAFE", "HELLO", "STOP", "LOVE", "MUSIC", "HOME", "EXIT", "TAXI", "HOTEL", "PIZZA", "SUMMER",
    "WINTER", "LONDON", "PARIS", "TOKYO", "PARK", "BOOKS", "COFFEE", "BAKERY", "GARDEN", "MUSEUM", "WELCOME", "DREAM",
    "HAPPY", "SMILE", "OCEAN", "FOREST", "MARKET", "STUDIO", "GALAXY", "ROCKET", "ORANGE", "LEMON", "TIGER", "PANDA",
)  # fmt: skip


class Thing(BaseModel):
    """One drawn object. `box` is (left, top, right, bottom) in fractions of the picture and holds every pixel of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    group: int
    shape: Shape
    colour: Colour
    texture: Texture
    box: Box


class Lettering(BaseModel):
    """A rendered word; `quad` are its corners clockwise from the text's own top left, in fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    words: str
    colour: Literal["black", "white"]
    quad: Quad


class Background(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Ground
    colour: Colour


class Scene(BaseModel):
    """A picture's full description; `size` is (width, height) in pixels as displayed, `noise` 0 to 3 the camera's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int
    size: tuple[int, int]
    background: Background
    things: tuple[Thing, ...]
    texts: tuple[Lettering, ...]
    noise: int


@dataclass(frozen=True)
class Group:
    """Things alike and close together; `box` is their union."""

    count: int
    shape: Shape
    colour: Colour
    texture: Texture
    box: Box


def groups(scene: Scene) -> list[Group]:
    """The scene's things by group, in the order they were laid out (the first is what the picture is about)."""
    members: dict[int, list[Thing]] = {}
    for thing in scene.things:
        members.setdefault(thing.group, []).append(thing)
    return [Group(len(m), m[0].shape, m[0].colour, m[0].texture, _union([t.box for t in m])) for m in members.values()]


def _union(boxes: list[Box]) -> Box:
    return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def contrast(a: Colour, b: Colour) -> int:
    """City-block distance of two palette colours, 0 to 765."""
    return sum(abs(x - y) for x, y in zip(RGB[a], RGB[b], strict=True))


def sample_size(rng: random.Random, short_side: int | None = None, ratio: float | None = None) -> tuple[int, int]:
    """Width and height of a web picture: short side 200 to 900 (median about 380), sides at most 1 : 2.5 by default."""
    if ratio is None:
        ratio = rng.choice((1.0, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, rng.uniform(1.0, 2.5)))
    if short_side is None:
        # Wide pictures are cut at 1,600 px, as web pages do.
        short_side = max(200, min(900, int(1600 / ratio), round(rng.lognormvariate(5.94, 0.38))))
    long_side = int(short_side * ratio)
    return (long_side, short_side) if rng.random() < 0.65 else (short_side, long_side)


def sample_scene(rng: random.Random, size: tuple[int, int]) -> Scene:
    """A scene for a picture of `size`: 1 to 3 groups of 1 to 6 like things, none overlapping, and sometimes a word."""
    count = rng.choices((1, 2, 3), (45, 40, 15))[0]
    ground = rng.choice(tuple(RGB))
    usable = [c for c in RGB if contrast(c, ground) >= 200]
    kinds: list[tuple[Shape, Colour]] = []
    while len(kinds) < count:
        kind = (rng.choice(SHAPES), rng.choice(usable))
        if kind not in kinds:
            kinds.append(kind)
    texts: list[Lettering] = []
    region: Box = (0.03, 0.03, 0.97, 0.97)
    if rng.random() < 0.3:
        text, region = _sample_text(rng, size, ground)
        texts.append(text)
    things: list[Thing] = []
    for number, ((shape, colour), area) in enumerate(zip(kinds, _split(rng, region, size, count), strict=True)):
        texture = rng.choices(TEXTURES, (70, 12, 9, 9))[0]
        amount = rng.choices((1, 2, 3, 4, 5, 6), (52, 17, 14, 8, 5, 4))[0]
        things += [
            Thing(group=number, shape=shape, colour=colour, texture=texture, box=box)
            for box in _arrange(rng, area, size, amount)
        ]
    return Scene(
        seed=rng.getrandbits(32),
        size=size,
        background=Background(kind=rng.choices(("plain", "gradient", "mottled"), (30, 30, 40))[0], colour=ground),
        things=tuple(things),
        texts=tuple(texts),
        noise=rng.choices((0, 1, 2, 3), (20, 30, 30, 20))[0],
    )


def different_scene(rng: random.Random, scene: Scene) -> Scene:
    """A scene that shares no shape and no colour of its things with `scene`: its captions are plainly wrong there."""
    shapes, colours = {t.shape for t in scene.things}, {t.colour for t in scene.things}
    while True:
        other = sample_scene(rng, scene.size)
        if shapes.isdisjoint(t.shape for t in other.things) and colours.isdisjoint(t.colour for t in other.things):
            return other


def _split(rng: random.Random, region: Box, size: tuple[int, int], count: int) -> list[Box]:
    """`count` side-by-side parts of a region, along its longer side in pixels as a rule, in random order."""
    left, top, right, bottom = region
    wide = (right - left) * size[0] > (bottom - top) * size[1] * rng.uniform(0.7, 1.4)
    parts: list[Box] = []
    for i in range(count):
        a, b = i / count, (i + 1) / count
        if wide:
            parts.append((left + (right - left) * a, top, left + (right - left) * b, bottom))
        else:
            parts.append((left, top + (bottom - top) * a, right, top + (bottom - top) * b))
    rng.shuffle(parts)
    return parts


def _arrange(rng: random.Random, area: Box, size: tuple[int, int], amount: int) -> list[Box]:
    """Boxes of `amount` things of one size, square in pixels, each inside its own cell of a grid over `area`."""
    width, height = (area[2] - area[0]) * size[0], (area[3] - area[1]) * size[1]
    columns = min(range(1, amount + 1), key=lambda c: -min(width / c, height / -(-amount // c)))
    rows = -(-amount // columns)
    cell_w, cell_h = width / columns, height / rows
    side = min(cell_w, cell_h) * rng.uniform(0.55, 0.92)
    cells = rng.sample([(c, r) for c in range(columns) for r in range(rows)], amount)
    boxes: list[Box] = []
    for column, row in cells:
        x = area[0] * size[0] + column * cell_w + rng.uniform(0, cell_w - side)
        y = area[1] * size[1] + row * cell_h + rng.uniform(0, cell_h - side)
        boxes.append(_fractions((x, y, x + side, y + side), size))
    return boxes


def _fractions(box: Box, size: tuple[int, int]) -> Box:
    w, h = size
    left, top, right, bottom = box
    return (round(left / w, 5), round(top / h, 5), round(right / w, 5), round(bottom / h, 5))


def _sample_text(rng: random.Random, size: tuple[int, int], ground: Colour) -> tuple[Lettering, Box]:
    """A word in a strip at the top or the bottom, slightly turned, and the region that is left for the things."""
    from demo.draw import word_aspect

    words = rng.choice(WORDS)
    w, h = size
    strip = rng.uniform(0.2, 0.28)
    height = min(strip * h * 0.62, 0.8 * w / word_aspect(words))
    width = height * word_aspect(words)
    sine = min(rng.uniform(-0.12, 0.12), 0.25 * strip * h / width, key=abs)
    cosine = (1 - sine * sine) ** 0.5
    spread_x, spread_y = (width * cosine + height * abs(sine)) / 2, (width * abs(sine) + height * cosine) / 2
    at_top = rng.random() < 0.5
    centre_x = rng.uniform(spread_x, max(spread_x, w - spread_x))
    middle = strip * h / 2 if at_top else h - strip * h / 2
    centre_y = min(max(middle, spread_y), h - spread_y)
    corners = []
    for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x = centre_x + (dx * width * cosine - dy * height * sine) / 2
        y = centre_y + (dx * width * sine + dy * height * cosine) / 2
        corners.append((round(min(max(x / w, 0.0), 1.0), 5), round(min(max(y / h, 0.0), 1.0), 5)))
    bright = sum(RGB[ground]) > 330
    quad = (corners[0], corners[1], corners[2], corners[3])
    text = Lettering(words=words, colour="black" if bright else "white", quad=quad)
    edge = spread_y / h * 2 + 0.02
    taken = max(strip, edge)
    return text, ((0.03, taken, 0.97, 0.97) if at_top else (0.03, 0.03, 0.97, 1 - taken))
