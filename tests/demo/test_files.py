from __future__ import annotations

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from demo.draw import draw
from demo.files import HAS_AVIF, Stored, store
from demo.scenes import Scene, sample_scene


def scene(seed: int = 0) -> Scene:
    rng = random.Random(seed)
    # Without noise, which lossy formats soften.
    return sample_scene(rng, (360, 240)).model_copy(update={"noise": 0})


def make(kind: str | None, seed: int = 0) -> Stored:
    return store(scene(seed), kind, random.Random(seed))


def opened(kind: str | None, seed: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(make(kind, seed).data))


def test_good_files_are_jpeg_png_and_webp_of_the_scene() -> None:
    formats = set()
    for seed in range(40):
        image = opened(None, seed)
        formats.add(image.format)
        assert image.size == make(None, seed).size == (360, 240)
        gap = np.abs(np.asarray(image.convert("RGB"), np.int16) - np.asarray(draw(scene(seed)), np.int16))
        assert gap.mean() < 4
    assert formats == {"JPEG", "PNG", "WEBP"}


@pytest.mark.parametrize("seed", range(10))
def test_a_truncated_file_opens_and_does_not_load(seed: int) -> None:
    with pytest.raises((OSError, UnidentifiedImageError)):
        opened("truncated", seed).load()


def test_a_cmyk_file_is_a_cmyk_jpeg() -> None:
    image = opened("cmyk")
    assert (image.format, image.mode) == ("JPEG", "CMYK")
    image.load()


def test_a_16_bit_file_says_so_in_its_header_and_shows_the_scene() -> None:
    data = make("png_16bit").data
    assert data[24:26] == bytes([16, 2])  # bit depth, RGB
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(draw(scene())))


@pytest.mark.parametrize("seed", range(14))
def test_exif_turns_the_stored_picture_upright(seed: int) -> None:
    stored = make("exif_rotation", seed)
    with Image.open(io.BytesIO(stored.data)) as image:
        orientation = image.getexif()[0x0112]
        upright = ImageOps.exif_transpose(image)
        assert image.size == stored.size == ((240, 360) if orientation >= 5 else (360, 240))
    assert upright.size == (360, 240)
    gap = np.abs(np.asarray(upright, np.int16) - np.asarray(draw(scene(seed)), np.int16))
    assert gap.mean() < 4


def test_a_gif_is_animated() -> None:
    image = opened("animated_gif")
    assert image.format == "GIF"
    assert image.n_frames >= 2  # type: ignore[attr-defined]


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow was built without AVIF")
def test_an_avif_is_an_avif() -> None:
    image = opened("avif")
    assert image.format == "AVIF"
    image.load()


def test_a_bomb_is_small_and_too_large_to_decode() -> None:
    data = make("bomb").data
    assert len(data) < 150_000
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
            Image.open(io.BytesIO(data))
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width * height > 89_478_485
    assert data.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_header_has_the_marks_of_an_image_and_no_size(seed: int) -> None:
    data = make("bad_header", seed).data
    assert data.startswith((b"\xff\xd8\xff", b"\x89PNG"))
    assert data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
    with pytest.raises((OSError, SyntaxError, ValueError)):
        Image.open(io.BytesIO(data)).load()


def test_an_unknown_defect_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image defect 'upside_down'"):
        make("upside_down")


def test_bytes_follow_from_the_seed() -> None:
    for kind in (None, "truncated", "cmyk", "exif_rotation", "animated_gif", "bad_header"):
        assert make(kind, 3) == make(kind, 3) != make(kind, 4)
