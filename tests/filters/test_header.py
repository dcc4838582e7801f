from __future__ import annotations

import io
import json
import mmap
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filters.header import HEADER_SCHEMA, scan_header, scan_headers
from tests.filters.conftest import encoded, oriented, picture

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def pillow_says(data: bytes) -> tuple[str, int, int, bool]:
    """Format, size as displayed, rotated: from Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = image.size[::-1] if rotated else image.size
        return FORMATS[image.format or ""], width, height, rotated


KINDS = [
    *[("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")],
    ("JPEG", "RGB", {"progressive": True, "quality": 95}),
    ("JPEG", "RGB", {"subsampling": 0, "icc_profile": bytes(200_000)}),
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    ("PNG", "RGB", {"compress_level": 0}),
    *[("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)],
    ("WEBP", "RGB", {"icc_profile": bytes(500)}),
]


@pytest.mark.parametrize(("form", "mode", "options"), KINDS)
@pytest.mark.parametrize("size", [(1, 1), (97, 31), (3, 500), (1030, 8)])
@pytest.mark.parametrize("readable", ["header", "trailer", "decode"])
def test_equals_pillow_in_every_mode(
    form: str, mode: str, options: dict[str, object], size: tuple[int, int], readable: str
) -> None:
    data = encoded(picture(*size, mode=mode), form, **options)
    assert scan_header(data, readable=readable) == (*pillow_says(data), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_swaps_the_sides(form: str, orientation: int) -> None:
    data = oriented(form, orientation)
    found = scan_header(data)
    assert found == (*pillow_says(data), None)
    assert found[1:4] == ((64, 96, True) if orientation >= 5 else (96, 64, False))


PROBLEMS = [
    (None, "missing"),
    (b"", "empty"),
    (b"<!DOCTYPE html><html><body><svg></svg></body></html>", "not_image"),
    (b"  <html><head></head></html>", "not_image"),
    (b'{"error": "not found"}', "not_image"),
    (b"BMW and other cars: 404", "not_image"),
    (b"P5 is a processor", "not_image"),
    (b"%PDF-1.7", "not_image"),
    (b"\0\0\0\x20ftypisom\0\0\0\0", "not_image"),
    (b"\0", "not_image"),
    (b"\xff\xd8", "not_image"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "not_image"),
    (encoded(picture(mode="P"), "GIF"), "format"),
    (encoded(picture(mode="P"), "GIF", save_all=True, append_images=[picture(mode="P", seed=1)]), "format"),
    *[(encoded(picture(), form), "format") for form in ("BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000")],
    (b"\xff\x0a\xfa\x7f", "format"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", "format"),
    (b"8BPS\0\x01", "format"),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format"),
    (
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a --><!-- b -->\n<!DOCTYPE svg PUBLIC "x" [<!ENTITY a "b">]><SVG>',
        "format",
    ),
    (b"<!-- a -->" * 300 + b"<p>", "not_image"),
    (b"\xff\xd8\xff\xe0", "header"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "header"),
    (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(40), "header"),
    (b"RIFF\x20\0\0\0WEBPABCD" + bytes(40), "header"),
    (encoded(picture(), "PNG", save_all=True, append_images=[picture(seed=1)]), "animated"),
    (encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]), "animated"),
]


@pytest.mark.parametrize(("data", "problem"), PROBLEMS)
def test_problems(data: bytes | None, problem: str) -> None:
    assert scan_header(data)[4] == problem
    assert scan_header(data, readable="decode")[4] == problem


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_half_an_image_is_truncated_but_keeps_its_size(form: str) -> None:
    data = encoded(picture(), form)
    half = data[: len(data) * 3 // 4]
    assert scan_header(half) == (FORMATS[form], 96, 64, False, "truncated")
    assert scan_header(half, readable="header") == (FORMATS[form], 96, 64, False, None)


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    for readable in ("header", "trailer", "decode"):
        assert scan_header(bomb, readable=readable) == ("png", 20_000, 20_000, False, "too_many_pixels")  # type: ignore[arg-type]
    assert scan_header(encoded(picture(), "JPEG"), max_pixels=96 * 64)[4] is None
    assert scan_header(encoded(picture(), "JPEG"), max_pixels=96 * 64 - 1)[4] == "too_many_pixels"


def test_decode_finds_what_the_container_hides() -> None:
    png = bytearray(encoded(picture(), "PNG"))
    png[len(png) // 2] ^= 0xFF  # the checksum of the picture's chunk no longer fits
    assert scan_header(bytes(png), readable="trailer")[4] is None
    assert scan_header(bytes(png), readable="decode")[4] == "decode"
    # Above Pillow's own wall, whatever `max_pixels` allows: DecompressionBombError is no OSError.
    bomb = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    assert scan_header(bomb, readable="decode", max_pixels=10**9)[4] == "decode"


def test_table_has_its_schema_and_its_order() -> None:
    jpeg = encoded(picture(), "JPEG")
    table = scan_headers(
        [jpeg, None, memoryview(jpeg), pa.py_buffer(jpeg), memoryview(bytearray(jpeg)).cast("b"), b"x"]
    )
    assert table.schema == HEADER_SCHEMA
    assert table["problem"].to_pylist() == [None, "missing", None, None, None, "not_image"]
    assert table["width"].to_pylist() == [96, None, 96, 96, 96, None]
    assert scan_headers([]).schema == HEADER_SCHEMA
    assert len(scan_headers([])) == 0


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    jpeg = encoded(picture(), "JPEG")
    large = jpeg[:-2] + b"\xab" * 20_000_000  # no end mark: the scan looks through all of it
    (tmp_path / "large").write_bytes(large)
    with open(tmp_path / "large", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        tracemalloc.start()
        problem = scan_header(view)[4]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        view.release()
    assert problem == "truncated"
    assert peak < 100_000


WHOLE = [
    encoded(picture(40, 30), "JPEG"),
    encoded(picture(40, 30), "JPEG", progressive=True),
    oriented("JPEG", 6, 40, 30),
    encoded(picture(40, 30), "PNG"),
    oriented("PNG", 6, 40, 30),
    encoded(picture(40, 30), "WEBP"),
    encoded(picture(40, 30), "WEBP", lossless=True),
    oriented("WEBP", 6, 40, 30),
]


@given(st.sampled_from(WHOLE), st.data())
def test_every_cut_is_found(data: bytes, draw: st.DataObject) -> None:
    cut = data[: draw.draw(st.integers(0, len(data) - 1))]
    assert scan_header(cut)[4] in {"empty", "not_image", "header", "truncated"}


@given(st.sampled_from(WHOLE), st.binary(max_size=300))
def test_what_is_appended_to_a_whole_image_does_no_harm(data: bytes, tail: bytes) -> None:
    assert scan_header(data + tail) == scan_header(data)


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"<svg",
    b"BM",
    b"P6 ",
]


@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_arbitrary_bytes_give_a_row(start: bytes, rest: bytes) -> None:
    name, width, height, rotated, problem = scan_header(start + rest)
    assert (name is None) <= (problem is not None)
    assert (width is None) == (height is None) == (rotated is None)
    assert problem is not None or (width is not None and width > 0 and height is not None and height > 0)


@settings(max_examples=200, deadline=None)  # the time is the decoder's
@given(st.sampled_from(WHOLE), st.data())
def test_mutations_never_raise(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, min(len(mutated) - 1, 200)))
        mutated[at] = draw.draw(st.integers(0, 255))
    scan_header(bytes(mutated), readable="decode", max_pixels=1_000_000)


# What Pillow opens but we call broken, or the other way round, with the reason.
ODD = {
    "truncated/truncated_app14.jpg": None,  # a short Adobe segment; the picture is whole
    "truncated/hopper_bad_exif.jpg": None,
    "truncated/hopper_idat_after_image_end.png": None,
    "truncated/unknown_compression_method.png": None,  # of a text chunk; `decode` finds it, since Pillow refuses
    "truncated/corrupted.jpg": None,  # garbage inside its scan, which Pillow decodes too
    "truncated/broken.png": "header",
    "truncated/corrupt-header.jpg": "header",
    "truncated/truncated.gif": "format",
    "bomb_or_dos/png_decompression_dos.png": None,  # a text chunk that unpacks to gigabytes; `decode` finds it
    "bomb_or_dos/big-height.webp": "animated",
    "bad_header/junk_jpeg_header.jpg": None,
    "bad_header/jpeg_ff00_header.jpg": None,
    "bad_header/negative_size.ppm": "not_image",
    "icc_colour/ultrahdr.jpg": "truncated",  # cut before the end of its main picture
    "other_formats/frozenpond.mpo": None,  # a JPEG of two pictures shows its first
    "other_formats/test-ole-file.doc": "not_image",
    "other_formats/hopper.tar": "not_image",
    "derived/empty.jpg": "empty",
    "derived/html_error_page.jpg": "not_image",
    "derived/cut_half.jpg": "truncated",
}
NOT_OPENED = {"truncated/unknown_compression_method.png", "bomb_or_dos/png_decompression_dos.png"}


def test_odd_images(shared_data: Path) -> None:
    listed = json.loads((shared_data / "odd_images" / "manifest.json").read_text())
    assert len(listed) > 100
    for item in listed:
        name, category = item["file"], item["category"]
        data = (shared_data / "odd_images" / name).read_bytes()
        row = scan_header(data)
        if name in ODD:
            expected = ODD[name]
        elif item["pillow"].get("format") not in ("JPEG", "PNG", "WEBP"):
            expected = "format"
        else:
            expected = {"truncated": "truncated", "animated": "animated"}.get(category)
            if item["pillow"].get("frames", 1) > 1:
                expected = "animated"
        assert row[4] == expected, name
        if expected == "truncated":  # Pillow loads a PNG to find its EXIF
            assert row[1:3] == (item["pillow"]["width"], item["pillow"]["height"]), name
        elif row[1] is not None and name not in NOT_OPENED:
            assert row[:4] == pillow_says(data), name
        if expected is None:
            loads = item["pillow"].get("load") == "ok"
            assert (scan_header(data, readable="decode")[4] is None) == loads, name


def test_real_pairs_equal_pillow(shared_data: Path) -> None:
    seen = 0
    for path in sorted((shared_data / "pairs_image").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    data = file.read()
                    assert scan_header(data) == (*pillow_says(data), None), member.name
                    seen += 1
    assert seen > 1000
