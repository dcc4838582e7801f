"""Draws scenes with Pillow at any size.

The decision behind this module: everything is placed by the scene's fractions and coloured by the scene's own seed, so
the same scene gives the same picture whatever was drawn before it, and a small drawing is the large one made smaller.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from demo.scenes import RGB, Lettering, Scene, Shape, Thing

_TILE = 512
_SIGMA = (0.0, 3.0, 7.0, 12.0)  # standard deviation of the noise levels, in grey values
_FONT_PX = 48
_SMOOTH = 2  # masks are drawn this many times larger and averaged down


def draw(scene: Scene, size: tuple[int, int] | None = None) -> Image.Image:
    """The scene as an RGB image of `size` (width, height) in pixels, by default the scene's own."""
    size = size or scene.size
    rng = random.Random(f"draw/{scene.seed}")
    image = _background(rng, scene, size)
    shades = {
        group: _shade(rng, RGB[colour], 14)
        for group, colour in {thing.group: thing.colour for thing in scene.things}.items()
    }
    for thing in scene.things:
        draw_thing(image, thing, shades[thing.group])
    for text in scene.texts:
        _draw_text(image, text)
    return _add_noise(rng, image, scene)


def _shade(rng: random.Random, rgb: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    light = rng.randint(-spread, spread)
    red, green, blue = (min(255, max(0, c + light + rng.randint(-6, 6))) for c in rgb)
    return red, green, blue


def _background(rng: random.Random, scene: Scene, size: tuple[int, int]) -> Image.Image:
    rgb = RGB[scene.background.colour]
    if scene.background.kind == "plain":
        return Image.new("RGB", size, _shade(rng, rgb, 10))
    across, down = (6, 5) if scene.background.kind == "mottled" else (2, 2)
    small = Image.new("RGB", (across, down))
    small.putdata([_shade(rng, rgb, 24) for _ in range(across * down)])
    return small.resize(size, Image.Resampling.BICUBIC)


def draw_thing(image: Image.Image, thing: Thing, rgb: tuple[int, int, int]) -> None:
    """Draws a thing into its box; the marks of a texture are a darker or a lighter shade of the same colour."""
    w, h = image.size
    left, top = math.ceil(thing.box[0] * w), math.ceil(thing.box[1] * h)
    right, bottom = max(left + 1, math.floor(thing.box[2] * w)), max(top + 1, math.floor(thing.box[3] * h))
    size = (right - left, bottom - top)
    mask = Image.new("L", (size[0] * _SMOOTH, size[1] * _SMOOTH))
    _draw_shape(ImageDraw.Draw(mask), thing.shape, mask.size)
    fill: Image.Image | tuple[int, int, int] = rgb
    if thing.texture != "plain":
        fill = Image.new("RGB", size, rgb)
        towards = 0 if sum(rgb) > 300 else 255
        marks = tuple(round(c + (towards - c) * 0.4) for c in rgb)
        _draw_texture(ImageDraw.Draw(fill), thing.texture, size, marks)
    image.paste(fill, (left, top, right, bottom), mask.reduce(_SMOOTH))


def _draw_texture(pen: ImageDraw.ImageDraw, texture: str, size: tuple[int, int], fill: tuple[int, ...]) -> None:
    w, h = size
    cells = 5
    if texture == "striped":
        for i in range(cells):
            pen.rectangle((0, h * i / cells, w, h * (i + 0.5) / cells), fill=fill)
        return
    for row in range(cells):
        for column in range(cells):
            box = (w * column / cells, h * row / cells, w * (column + 1) / cells, h * (row + 1) / cells)
            if texture == "checkered" and (row + column) % 2:
                pen.rectangle(box, fill=fill)
            elif texture == "dotted":
                inset_x, inset_y = w / cells * 0.25, h / cells * 0.25
                pen.ellipse((box[0] + inset_x, box[1] + inset_y, box[2] - inset_x, box[3] - inset_y), fill=fill)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int]) -> None:
    w, h = size[0] - 1, size[1] - 1

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * w, y * h) for x, y in pairs]

    if shape == "circle":
        pen.ellipse((0, 0, w, h), fill=255)
    elif shape == "ring":
        pen.ellipse((0, 0, w, h), fill=255)
        pen.ellipse((w * 0.25, h * 0.25, w * 0.75, h * 0.75), fill=0)
    elif shape == "crescent":
        pen.ellipse((0, 0, w, h), fill=255)
        pen.ellipse((w * 0.35, -h * 0.05, w * 1.25, h * 0.85), fill=0)
    elif shape == "square":
        pen.rectangle((w * 0.05, h * 0.05, w * 0.95, h * 0.95), fill=255)
    elif shape == "triangle":
        pen.polygon(points((0.5, 0), (1, 0.95), (0, 0.95)), fill=255)
    elif shape == "diamond":
        pen.polygon(points((0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)), fill=255)
    elif shape == "hexagon":
        pen.polygon(points((0.25, 0.07), (0.75, 0.07), (1, 0.5), (0.75, 0.93), (0.25, 0.93), (0, 0.5)), fill=255)
    elif shape == "cross":
        pen.rectangle((w * 0.34, 0, w * 0.66, h), fill=255)
        pen.rectangle((0, h * 0.34, w, h * 0.66), fill=255)
    elif shape == "heart":
        pen.ellipse((0, h * 0.05, w * 0.54, h * 0.6), fill=255)
        pen.ellipse((w * 0.46, h * 0.05, w, h * 0.6), fill=255)
        pen.polygon(points((0.045, 0.45), (0.5, 0.3), (0.955, 0.45), (0.5, 1)), fill=255)
    else:
        radii = [0.5 if i % 2 == 0 else 0.2 for i in range(10)]
        turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
        star = [(0.5 + r * math.cos(t), 0.5 + r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]
        pen.polygon(points(*star), fill=255)


@lru_cache(maxsize=256)
def _word_mask(words: str) -> Image.Image:
    """A word in Pillow's own font (the only one that every installation has), cut to its ink."""
    font = ImageFont.load_default(_FONT_PX)
    left, top, right, bottom = (math.floor(v) for v in font.getbbox(words))
    mask = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(mask).text((4 - left, 4 - top), words, fill=255, font=font)
    return mask.crop(mask.getbbox())


def word_aspect(words: str) -> float:
    """Width of a word's ink by its height."""
    w, h = _word_mask(words).size
    return w / h


def _draw_text(image: Image.Image, text: Lettering) -> None:
    """Maps the word's mask onto its quad, which is a parallelogram at every size of the picture."""
    mask = _word_mask(text.words)
    corners = [(x * image.width, y * image.height) for x, y in text.quad]
    left, top = (math.floor(min(c[i] for c in corners)) for i in (0, 1))
    right, bottom = (math.ceil(max(c[i] for c in corners)) for i in (0, 1))
    (x0, y0), (x1, y1), _, (x3, y3) = corners
    ax, ay, bx, by = x1 - x0, y1 - y0, x3 - x0, y3 - y0
    area = ax * by - ay * bx
    if area <= 0:
        return
    # A pixel p of the picture comes from mask coordinates u = (p - corner 0) solved in the quad's two edges.
    a, b = by / area * mask.width, -bx / area * mask.width
    d, e = -ay / area * mask.height, ax / area * mask.height
    c, f = a * (left - x0) + b * (top - y0), d * (left - x0) + e * (top - y0)
    scale = max(1, round(mask.height / max(1.0, math.hypot(bx, by))))
    if scale > 1:  # averaged down first: the transform alone would skip pixels
        mask = mask.reduce(scale)
        a, b, c, d, e, f = (v / scale for v in (a, b, c, d, e, f))
    placed = mask.transform(
        (max(1, right - left), max(1, bottom - top)),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
    )
    image.paste(RGB[text.colour], (left, top, left + placed.width, top + placed.height), placed)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(7).standard_normal((_TILE, _TILE, 3), dtype=np.float32)


@lru_cache(maxsize=32)
def _noise_tile(sigma: float) -> Image.Image:
    """A fixed tile of Gaussian noise around 128: made once a process, laid at random offsets."""
    return Image.fromarray(np.clip(np.rint(_noise() * sigma + 128), 0, 255).astype(np.uint8))


def _add_noise(rng: random.Random, image: Image.Image, scene: Scene) -> Image.Image:
    # A picture made smaller averages its noise away; half steps keep the number of cached tiles small.
    shrink = min(1.0, image.width / scene.size[0], image.height / scene.size[1])
    sigma = round(_SIGMA[scene.noise] * shrink * 2) / 2
    if sigma == 0:
        return image
    tile = _noise_tile(sigma)
    x, y = rng.randrange(_TILE), rng.randrange(_TILE)
    noise = Image.new("RGB", image.size)
    for left in range(-x, image.width, _TILE):
        for top in range(-y, image.height, _TILE):
            noise.paste(tile, (left, top))
    return ImageChops.add(image, noise, 1, -128)
