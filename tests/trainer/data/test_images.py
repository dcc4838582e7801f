"""Pixels against open_clip's and torchvision's own transform, and against curation's reading of odd real files."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from filters.pixels import Undecodable
from filters.pixels import read_rgb as read_as_curation
from tests.filters.conftest import encoded, oriented, picture
from trainer.data.images import MEAN, MOST_PIXELS, STD, read_rgb, to_pixels
from trainer.errors import DataError

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA") or Path(__file__).parents[3].parent / "shared" / "data")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("width", "height", "size"), [(90, 41, 64), (33, 200, 56), (500, 375, 224), (20, 20, 64)])
def test_equals_the_transforms_of_open_clip_and_torchvision(form: str, width: int, height: int, size: int) -> None:
    import open_clip
    from torchvision import transforms

    data = encoded(noise(width, height), form)
    found = to_pixels(data, size)
    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, size, size), torch.float32, True)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    released = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    squash = open_clip.image_transform(size, is_train=False, mean=MEAN, std=STD, resize_mode="squash")
    for theirs in (released(image), squash(image)):  # torch resizes, not Pillow: other roundings
        levels = (found - theirs).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
        assert levels.mean() < 0.4
        assert levels.max() < 10
        assert levels.quantile(0.99) < 3.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_curation_sees_it(form: str, orientation: int) -> None:
    data = oriented(form, orientation)
    assert np.array_equal(np.asarray(read_rgb(data)), np.asarray(read_as_curation(memoryview(data))))


def test_an_orientation_of_xmp_alone_does_not_count() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    out = io.BytesIO()
    picture().save(out, "WEBP", lossless=True, xmp=packet)
    assert Image.open(io.BytesIO(out.getvalue())).getexif()[0x0112] == 6  # Pillow's reading
    assert np.array_equal(np.asarray(read_rgb(out.getvalue())), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_opaque_modes_are_converted_plainly(mode: str) -> None:
    data = encoded(picture(mode=mode), "JPEG" if mode == "CMYK" else "PNG")
    assert np.array_equal(np.asarray(read_rgb(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_16_bits_are_scaled_not_clipped() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256))
    values = np.asarray(read_rgb(encoded(ramp, "PNG")))[0]
    assert values[:, 0].tolist() == list(range(256))
    assert np.array_equal(values[:, 0], values[:, 1])
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)), "PNG")
    assert np.array_equal(np.asarray(read_rgb(data)), np.asarray(read_as_curation(memoryview(data))))


def rgba() -> Image.Image:
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (40, 50, 60, 0))
    image.putpixel((2, 0), (70, 80, 90, 128))
    return image


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_transparency_is_dropped(form: str, options: dict[str, Any]) -> None:
    values = np.asarray(read_rgb(encoded(rgba(), form, **options)))[0].tolist()
    assert values == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    grey = np.asarray(read_rgb(encoded(Image.new("LA", (1, 1), (77, 0)), "PNG")))
    assert grey[0, 0].tolist() == [77, 77, 77]


def test_a_palette_with_transparent_colours_warns_of_nothing() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = np.asarray(read_rgb(encoded(image, "PNG", transparency=b"\x00\x80")))[0].tolist()
    assert values == [[255, 0, 0], [0, 0, 255]]


def test_the_first_frame_of_an_animation() -> None:
    out = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(read_rgb(out.getvalue()))[0, 0].tolist() == [255, 0, 0]


def bomb(side: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("pillows_own", [True, False])
def test_too_many_pixels_are_refused_by_the_header(pillows_own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other libraries of a process may have lifted Pillow's limit; the guard does not lean on it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS if pillows_own else None)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    side = int(MOST_PIXELS**0.5) + 1
    with pytest.raises(DataError, match=r"cannot be read .*pixels"):
        read_rgb(bomb(side))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"<html>not found</html>",
        encoded(noise(80, 60), "JPEG")[:1500],
        encoded(noise(80, 60), "PNG")[:5000],
        encoded(noise(80, 60), "WEBP")[:900],
        encoded(picture(), "PNG").replace(b"IDAT", b"IDAX"),
        encoded(picture(), "GIF"),
        encoded(picture(), "TIFF"),
    ],
    ids=["empty", "magic", "html", "cut jpeg", "cut png", "cut webp", "no data", "gif", "tiff"],
)
def test_what_is_no_picture_is_one_line(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        to_pixels(data, 32)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)
    assert str(caught.value).startswith(f"an image of {len(data):,} bytes cannot be read")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}: set WINNOW_SHARED_DATA to test on real files")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_odd_files_give_what_curation_sees_or_one_line() -> None:
    folder = SHARED / "odd_images"
    read = refused = 0
    for entry in json.loads((folder / "manifest.json").read_text()):
        data = (folder / entry["file"]).read_bytes()
        try:
            expected = read_as_curation(memoryview(data))
        except Undecodable:
            with pytest.raises(DataError) as caught:
                read_rgb(data)
            assert "\n" not in str(caught.value), entry["file"]
            refused += 1
            continue
        found = read_rgb(data)
        assert found.size == expected.size, entry["file"]
        read += 1
        if not Image.open(io.BytesIO(data)).has_transparency_data:
            assert np.array_equal(np.asarray(found), np.asarray(expected)), entry["file"]
        pixels = to_pixels(data, 32)
        assert pixels.shape == (3, 32, 32)
        assert pixels.isfinite().all()
    assert read > 40
    assert refused > 40
