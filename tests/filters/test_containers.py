from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.containers import read_jpeg, read_orientation, read_png, read_webp
from tests.filters.conftest import encoded, oriented, picture


def exif(order: str, entries: list[bytes], count: int | None = None) -> memoryview:
    head = b"II*\0" if order == "<" else b"MM\0*"
    number = len(entries) if count is None else count
    return memoryview(head + struct.pack(order + "IH", 8, number) + b"".join(entries))


def entry(order: str, tag: int, kind: int, values: int, value: bytes) -> bytes:
    return struct.pack(order + "HHI", tag, kind, values) + value.ljust(4, b"\0")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(1, "B"), (3, "H"), (4, "I")])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_in_both_byte_orders_and_all_types(order: str, kind: int, code: str, value: int) -> None:
    make = entry(order, 0x010F, 2, 4, b"abc"), entry(order, 0x0112, kind, 1, struct.pack(order + code, value))
    assert read_orientation(exif(order, list(make))) == value
    assert read_orientation(memoryview(b"Exif\0\0" + exif(order, list(make)))) == value


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0\x08\0\0\0\x01\0",
        exif("<", [entry("<", 0x0112, 3, 1, b"\0\0")]),
        exif("<", [entry("<", 0x0112, 3, 1, b"\x09\0")]),
        exif("<", [entry("<", 0x0112, 3, 2, b"\x06\0\x06\0")]),
        exif("<", [entry("<", 0x0112, 5, 1, b"\x06\0")]),
        exif("<", [entry("<", 0x0112, 3, 1, b"\x06\0")[:9]]),
        exif("<", [], count=65535),
    ],
)
def test_invalid_orientation_is_upright(block: bytes) -> None:
    assert read_orientation(memoryview(block)) == 1


@given(st.binary(max_size=200))
def test_orientation_never_raises(block: bytes) -> None:
    assert read_orientation(memoryview(block)) in range(1, 9)
    assert read_orientation(memoryview(b"MM\0*\0\0\0\x08" + block)) in range(1, 9)


def test_jpeg_end_mark_of_a_thumbnail_does_not_count() -> None:
    jpeg = encoded(picture(), "JPEG")
    with_thumbnail = jpeg[:2] + b"\xff\xe1\0\x06\xff\xd8\xff\xd9" + jpeg[2:]
    whole, cut = read_jpeg(memoryview(with_thumbnail)), read_jpeg(memoryview(with_thumbnail[:-2]))
    assert whole is not None
    assert whole.complete
    assert cut is not None
    assert not cut.complete


def test_jpeg_tolerates_fill_bytes_junk_and_restart_marks_between_segments() -> None:
    jpeg = encoded(picture(), "JPEG")
    assert read_jpeg(memoryview(jpeg[:2] + b"\xff\xff\xff" + jpeg[2:])) == read_jpeg(memoryview(jpeg))
    assert read_jpeg(memoryview(jpeg[:2] + b"junk\xff\x00" + jpeg[2:])) == read_jpeg(memoryview(jpeg))
    assert read_jpeg(memoryview(jpeg[:2] + b"\xff\xd0\xff\x01" + jpeg[2:])) == read_jpeg(memoryview(jpeg))


def _frame(bits: int = 8, height: int = 5, width: int = 7, components: int = 3) -> bytes:
    return (
        b"\xff\xc0\0\x11" + struct.pack(">BHHB", bits, height, width, components) + bytes(9) + b"\xff\xda\0\x02\xff\xd9"
    )


@pytest.mark.parametrize(
    ("body", "readable"),
    [
        (_frame(), True),
        (_frame(components=1), True),
        (_frame(components=4), True),
        (_frame(bits=12), False),
        (_frame(components=2), False),
        (_frame(height=0), False),
        (_frame(width=0), False),
        (b"\xff\xda\0\x02\xff\xd9", False),  # a scan without a frame
        (b"\xff\xd9", False),
        (b"\xff\xe0\0\x01" + _frame(), False),  # a length that does not cover itself
        (b"\xff\x50\0\x02" + _frame(), False),  # a reserved marker
        (b"\xff\xe0\xff\xff" + _frame(), False),  # a segment longer than the file
        (b"", False),
    ],
)
def test_jpeg_frames(body: bytes, readable: bool) -> None:
    found = read_jpeg(memoryview(b"\xff\xd8" + body))
    assert (found is not None) == readable
    if found:
        assert (found.width, found.height, found.complete) == (7, 5, True)


def test_png_orientation_counts_before_and_after_the_picture() -> None:
    png = oriented("PNG", 6)
    at = png.index(b"eXIf") - 4
    size = 12 + int.from_bytes(png[at : at + 4], "big")
    chunk, end = png[at : at + size], len(png) - 12
    moved = png[:at] + png[at + size : end] + chunk + png[end:]
    for data in (png, moved):
        found = read_png(memoryview(data))
        assert found is not None
        assert (found.orientation, found.complete) == (6, True)


def test_png_with_a_wrong_header_checksum_or_depth_is_broken() -> None:
    png = encoded(picture(), "PNG")
    assert read_png(memoryview(png)) is not None
    assert read_png(memoryview(png[:17] + b"\x01" + png[18:])) is None
    assert read_png(memoryview(png[:30])) is None


def test_animation() -> None:
    frames = [picture(seed=seed) for seed in range(3)]
    for form, read in (("PNG", read_png), ("WEBP", read_webp)):
        still = read(memoryview(encoded(frames[0], form)))
        moving = read(memoryview(encoded(frames[0], form, save_all=True, append_images=frames[1:])))
        assert still is not None
        assert not still.animated
        assert moving is not None
        assert moving.animated
        assert moving.complete


def test_webp_with_exif_but_without_a_picture_is_incomplete() -> None:
    webp = oriented("WEBP", 8)
    found = read_webp(memoryview(webp))
    assert found is not None
    assert (found.orientation, found.complete) == (8, True)
    shorter = webp[:30]
    shorter = shorter[:4] + struct.pack("<I", len(shorter) - 8) + shorter[8:]
    found = read_webp(memoryview(shorter))
    assert found is not None
    assert not found.complete


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_jpeg, b"\xff\xd8" + b"\xff" * 8_000_000),
        (read_jpeg, b"\xff\xd8" + b"\xff\x00" * 4_000_000),
        (read_jpeg, b"\xff\xd8" + b"\xff\xd0" * 4_000_000),
        (read_jpeg, b"\xff\xd8" + b"\xff\xe0\0\x02" * 2_000_000),
        (read_jpeg, b"\xff\xd8" + _frame()[:-2] + b"\xff\x00" * 4_000_000),
        (read_png, encoded(picture(), "PNG")[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 700_000),
        (read_webp, b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\x08\0\0\0\x09\0\0\x09\0\0" + b"ABCD\0\0\0\0" * 1_000_000),
    ],
)
def test_hostile_runs_of_marks_end_soon(read: object, data: bytes) -> None:
    start = time.process_time()
    read(memoryview(data))  # type: ignore[operator]
    assert time.process_time() - start < 1.0
