from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image, ImageChops

from demo.draw import draw, draw_thing
from demo.scenes import RGB, SHAPES, TEXTURES, Scene, Thing, sample_scene, sample_size


def scene(seed: int) -> Scene:
    rng = random.Random(seed)
    return sample_scene(rng, sample_size(rng))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_a_box_holds_every_pixel_of_its_thing_and_is_filled(shape: str, texture: str) -> None:
    box = (0.2137, 0.3011, 0.6203, 0.7499)
    thing = Thing.model_validate({"group": 0, "shape": shape, "colour": "red", "texture": texture, "box": box})
    image = Image.new("RGB", (331, 227), "white")
    draw_thing(image, thing, RGB["red"])
    drawn = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    assert drawn is not None
    held = (box[0] * 331, box[1] * 227, box[2] * 331, box[3] * 227)
    assert drawn[0] >= held[0]
    assert drawn[1] >= held[1]
    assert drawn[2] <= held[2]
    assert drawn[3] <= held[3]
    # No box is much larger than its thing: a diamond is narrowest with 0.7 of the width.
    assert drawn[2] - drawn[0] >= 0.65 * (held[2] - held[0])
    assert drawn[3] - drawn[1] >= 0.85 * (held[3] - held[1])


def test_a_quad_holds_the_ink_of_its_word() -> None:
    checked = 0
    for s in map(scene, range(60)):
        if not s.texts:
            continue
        still = s.model_copy(update={"noise": 0})
        ink = ImageChops.difference(draw(still), draw(still.model_copy(update={"texts": ()}))).getbbox()
        assert ink is not None
        w, h = s.size
        xs, ys = [x * w for x, _ in s.texts[0].quad], [y * h for _, y in s.texts[0].quad]
        assert ink[0] >= math.floor(min(xs))
        assert ink[1] >= math.floor(min(ys))
        assert ink[2] <= math.ceil(max(xs))
        assert ink[3] <= math.ceil(max(ys))
        assert ink[2] - ink[0] >= 0.9 * (max(xs) - min(xs))
        checked += 1
    assert checked >= 8


def test_a_drawing_depends_on_its_scene_alone() -> None:
    first = draw(scene(1)).tobytes()
    draw(scene(2))
    assert draw(scene(1)).tobytes() == first != draw(scene(1).model_copy(update={"seed": 5})).tobytes()


@pytest.mark.parametrize("seed", range(12))
def test_a_small_drawing_is_the_large_one_made_smaller(seed: int) -> None:
    large = draw(scene(seed)).resize((64, 64), Image.Resampling.BICUBIC)
    small = draw(scene(seed), (128, 128)).resize((64, 64), Image.Resampling.BICUBIC)
    gap = np.abs(np.asarray(large, np.int16) - np.asarray(small, np.int16))
    assert gap.mean() < 6


def test_noise_covers_pictures_larger_than_its_tile() -> None:
    s = scene(0).model_copy(update={"noise": 3, "size": (1300, 700), "texts": (), "things": ()})
    s = s.model_copy(update={"background": s.background.model_copy(update={"kind": "plain", "colour": "grey"})})
    pixels = np.asarray(draw(s), np.float64)
    for part in (pixels[:100, :100], pixels[-100:, -100:], pixels[:100, -100:], pixels[-100:, :100]):
        assert 8 < part.std() < 16
