from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from filters.header import scan_header
from filters.pixels import Undecodable, check_decodes, read_rgb
from tests.filters.conftest import encoded, oriented, picture


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in steps of 255."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_pillow_turns_it(form: str, orientation: int) -> None:
    data = oriented(form, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert difference(read_rgb(memoryview(data)), upright) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_transparency_equal_pillow(mode: str) -> None:
    image = picture(mode=mode)
    assert difference(read_rgb(memoryview(encoded(image, "PNG"))), image.convert("RGB")) == 0


def test_cmyk_equals_pillow() -> None:
    data = encoded(picture(mode="CMYK"), "JPEG")
    found = read_rgb(memoryview(data))
    assert found.mode == "RGB"
    assert difference(found, Image.open(io.BytesIO(data)).convert("RGB")) == 0
    assert difference(found, picture()) < 20


def test_16_bits_are_scaled_not_clipped() -> None:
    grey = picture(mode="L")
    found = read_rgb(memoryview(encoded(picture(mode="I;16"), "PNG")))
    assert difference(found, grey.convert("RGB")) == 0
    black_to_white = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256))
    values = np.asarray(read_rgb(memoryview(encoded(black_to_white, "PNG"))))[0, :, 0]
    assert values.tolist() == list(range(256))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_lies_on_white(form: str) -> None:
    image = Image.new("RGBA", (4, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    values = np.asarray(read_rgb(memoryview(encoded(image, form, **options))))[0].tolist()
    assert values == [[10, 20, 30], [255, 255, 255], [127, 127, 127], [10, 20, 30]]


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    values = np.asarray(read_rgb(memoryview(encoded(image, "PNG", transparency=0))))[0].tolist()
    assert values == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((900, 800), (450, 400)), ((901, 775), (451, 388)), ((900, 700), (900, 700)), ((4000, 130), (4000, 130))],
)
def test_jpeg_is_reduced_while_both_sides_stay_three_times_as_long(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert read_rgb(memoryview(encoded(picture(*size), "JPEG")), side=128).size == expected
    assert read_rgb(memoryview(encoded(picture(*size), "PNG")), side=128).size == size


@pytest.mark.parametrize(("width", "height", "scale"), [(1545, 776, 8), (777, 1539, 4), (393, 391, 2), (776, 784, 4)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_side_that_the_factor_does_not_divide_stretches_nothing(
    width: int, height: int, scale: int, mode: str
) -> None:
    """Waves are where they were: pixel i of n shows what is at (i + 1/2) / n of the whole."""
    down, across = (np.sin(np.linspace(0, 12 * np.pi, n)) for n in (height, width))
    waves = 128 + 50 * np.add.outer(down, across)
    image = Image.fromarray(waves.round().astype(np.uint8)).convert(mode)
    data = memoryview(encoded(image, "JPEG", quality=98))
    side = min(width, height) // scale // 3
    found, whole = read_rgb(data, side), read_rgb(data)
    assert found.size == (-(-width // scale), -(-height // scale))
    small = (48, 48)
    apart = np.asarray(found.resize(small), np.float32) - np.asarray(whole.resize(small), np.float32)
    assert np.abs(apart).mean() < 0.5


BROKEN = [
    (b"", "no JPEG, PNG or WebP header"),
    (b"<html>", "no JPEG, PNG or WebP header"),
    (encoded(picture(mode="P"), "GIF"), "no JPEG, PNG or WebP header"),
    (encoded(picture(), "JPEG")[:700], "OSError"),
    (encoded(picture(), "WEBP")[:300], "Error"),
    (encoded(picture(), "PNG")[:-40], "OSError"),
    (encoded(Image.new("1", (14_000, 14_000)), "PNG"), "14000x14000 pixels are too many"),
]


@pytest.mark.parametrize(("data", "reason"), BROKEN)
def test_broken_images_say_why_in_one_line(data: bytes, reason: str) -> None:
    for decode in (check_decodes, read_rgb):
        with pytest.raises(Undecodable, match=reason) as caught:
            decode(memoryview(data))
        assert "\n" not in str(caught.value)


def test_reasons_name_no_address() -> None:
    """Pillow's message has the address of a buffer in it; a ledger with it would differ from run to run."""
    png = encoded(picture(), "PNG")
    unopenable = png[:33] + b"\0\0\0\x01iCCP\0" + bytes(4) + png[33:]
    with pytest.raises(Undecodable, match="UnidentifiedImageError") as caught:
        check_decodes(memoryview(unopenable))
    assert "0x" not in str(caught.value)


@settings(deadline=None)  # the time is the decoder's
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_damaged_images_decode_or_are_undecodable(form: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(picture(40, 30), form))
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    assume(scan_header(bytes(data), max_pixels=1_000_000)[4] != "too_many_pixels")
    with contextlib.suppress(Undecodable):
        assert read_rgb(memoryview(bytes(data)), side=8).mode == "RGB"


def test_odd_images_decode_or_are_undecodable(shared_data: Path) -> None:
    folder = shared_data / "odd_images"
    outcomes = {}
    for item in json.loads((folder / "manifest.json").read_text()):
        try:
            outcomes[item["file"]] = read_rgb(memoryview((folder / item["file"]).read_bytes()), side=64).mode
        except Undecodable as error:
            outcomes[item["file"]] = str(error)
    for name in ("cmyk/Channel_digital_image_CMYK_color.jpg", "16bit/basn6a16.png", "other_formats/frozenpond.mpo"):
        assert outcomes[name] == "RGB"
    assert "MAX_TEXT_CHUNK" in outcomes["bomb_or_dos/png_decompression_dos.png"]
    assert outcomes["truncated/truncated.jpg"].startswith("OSError")


def test_reduced_decoding_hardly_moves_the_scores_of_the_demos_clip(shared_data: Path) -> None:
    """Against plain open_clip on the same photographs at full scale; only those count that are decoded reduced."""
    import torch
    from open_clip import create_model_from_pretrained, get_tokenizer

    from demo.clip import ensure_clip

    folder = Path(__file__).parents[2] / "data" / "demo" / "clip"
    ensure_clip(folder)
    model, preprocess = create_model_from_pretrained(f"local-dir:{folder}", weights_only=True)
    photographs = [data for index, data in enumerate(_photographs(shared_data)) if index % 2 == 0]
    reduced, whole = [], []
    for data in photographs:
        full = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        ours = read_rgb(memoryview(data), side=64)
        if ours.size != full.size:
            reduced.append(preprocess(ours))
            whole.append(preprocess(full))
    assert len(photographs) > 500
    assert len(reduced) > 200
    captions = ["a family around a table", "a dog on a beach", "海滩上的一只狗", "a red circle on white"]
    with torch.inference_mode():
        read = model.eval().encode_text(get_tokenizer(f"local-dir:{folder}")(captions), normalize=True)
        a, b = (model.encode_image(torch.stack(pictures), normalize=True) @ read.T for pictures in (reduced, whole))
    apart = (a - b).abs().numpy()
    assert apart.mean() < 2e-3
    assert np.quantile(apart, 0.99) < 1e-2


def _photographs(shared_data: Path) -> Iterator[bytes]:
    for path in sorted((shared_data / "pairs_image").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if data.startswith(b"\xff\xd8\xff"):
                    yield data
