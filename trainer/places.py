"""Places in what a model says: boxes and quads with the phrase they belong to, and a picture with them drawn in.

The one decision: places are read from token ids, never from text. A caption may hold the characters `<box>`; only the
token means one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.data.tasks import fraction
from trainer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)")
# The first ones of a palette made for colour-blind readers (Okabe and Ito, 2008).
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Place:
    """`points`: two corners of a box (left, top, right, bottom in order), or four of a quad, as fractions of the image.

    `phrase`: what stands between the `<ref>` tags before it; None without one.
    """

    phrase: str | None
    points: tuple[tuple[float, float], ...]


def places_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[Place]:
    """The boxes and quads in token ids. What is no box is left out: models invent such things."""
    names = ("ref", "box", "quad")
    tags = {tokenizer.special[f"{slash}{name}"]: (slash, name) for name in names for slash in ("", "/")}
    found: list[Place] = []
    phrase: str | None = None
    begun, start = "", 0
    for at, token in enumerate(ids):
        slash, name = tags.get(token, ("", ""))
        if name and not slash:
            begun, start = name, at + 1
        elif begun and name == begun:
            text, begun = tokenizer.decode(ids[start:at]), ""
            if name == "ref":
                phrase = text.strip()
            elif points := _points(text, 2 if name == "box" else 4):
                found.append(Place(phrase, points))
        elif not begun:
            phrase = None  # a place belongs to the phrase right before it
    return found


def _points(text: str, count: int) -> tuple[tuple[float, float], ...] | None:
    numbers = [(int(x), int(y)) for x, y in _POINT.findall(text)]
    if len(numbers) != count or max(max(pair) for pair in numbers) > 999:
        return None
    points = tuple((fraction(x), fraction(y)) for x, y in numbers)
    if count == 2:
        (a, b), (c, d) = points
        return (min(a, c), min(b, d)), (max(a, c), max(b, d))
    return points


def draw(image: Image, places: Sequence[Place]) -> Image:
    """A copy of a picture with places outlined and named; one colour a phrase."""
    from PIL import ImageDraw, ImageFont

    copy = image.convert("RGB")
    pen = ImageDraw.Draw(copy)
    stroke = max(2, min(copy.size) // 150)
    font = ImageFont.load_default(max(10, min(copy.size) // 30))
    colours: dict[str | None, str] = {}
    for place in places:
        colour = colours.setdefault(place.phrase, _COLOURS[len(colours) % len(_COLOURS)])
        corners = [(x * (copy.width - 1), y * (copy.height - 1)) for x, y in place.points]
        if len(corners) == 2:
            pen.rectangle([*corners], outline=colour, width=stroke)
        else:
            pen.line([*corners, corners[0]], fill=colour, width=stroke)
        if place.phrase:
            at = (corners[0][0] + stroke, corners[0][1] + stroke)
            pen.rectangle(pen.textbbox(at, place.phrase, font=font), fill=colour)
            pen.text(at, place.phrase, fill="white", font=font)
    return copy
