"""What is known of images before anything decodes them: format, size as displayed, and why one is of no use.

The decision behind this module: an image is judged by its bytes alone, never by its name or declared type, and with
the least work that gives an honest answer: a few microseconds an image, of which only the header and the end are
touched. `readable` says how much harder `scan_headers` looks.

| problem | found by | what it means |
|---|---|---|
| `missing` | header | there is no image (None) |
| `empty` | header | zero bytes |
| `not_image` | header | HTML, JSON, text, video, PDF, anything unknown |
| `format` | header | an image we do not ship: GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, JPEG XL, ICO, PSD, SVG ... |
| `header` | header | JPEG, PNG or WebP by its first bytes, but no valid size, or a coding no usual decoder takes |
| `animated` | header | WebP with the animation flag, PNG with more than one frame |
| `too_many_pixels` | header | width x height above `max_pixels` |
| `truncated` | trailer | no end mark: JPEG without EOI after its scan, PNG without IEND, WebP shorter than it says |
| `decode` | decode | a full decode with Pillow fails |

The first problem in the order of this table is the one reported. Animated images are dropped because a caption tells
of the whole and readers disagree on the frame: Pillow takes the first, libwebp's plain decoder refuses. JPEG files
with several pictures (MPO) or with a gain map show their first picture everywhere and are kept, as are CMYK, grey,
palette, alpha and 16 bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import pyarrow as pa

from filters.containers import Container, read_jpeg, read_png, read_webp

Readable = Literal["header", "trailer", "decode"]
Image: TypeAlias = bytes | memoryview | pa.Buffer

# Pillow's own limit for one picture (MAX_IMAGE_PIXELS: a quarter of a gigabyte as RGB), above which it warns; at
# twice as many it refuses, so a larger `max_pixels` than that would only turn up as `decode`.
DEFAULT_MAX_PIXELS = 89_478_485

HEADER_SCHEMA = pa.schema(
    [
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotated", pa.bool_()),
        ("problem", pa.string()),
    ]
)

_PNG = b"\x89PNG\r\n\x1a\n"
_ISO_BRANDS = frozenset(
    [
        b"avif",
        b"avis",
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"hevm",
        b"hevs",
        b"mif1",
        b"mif2",
        b"msf1",
    ]
)
# First bytes of images that are not shipped. BMP and PNM are recognised below: their first bytes alone could be text.
_OTHER_FORMATS = (
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF, and most raw camera files
    b"MM\0*",
    b"II+\0",  # BigTIFF
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",  # its bare code stream
    b"\0\0\0\x0cJXL \r\n\x87\n",  # JPEG XL
    b"\xff\x0a",
    b"II\xbc\x01",  # JPEG XR
    b"\0\0\1\0",  # ICO
    b"\0\0\2\0",  # CUR
    b"8BPS",  # PSD
    b"qoif",
    b"\x8aMNG\r\n\x1a\n",
    b"\x8bJNG\r\n\x1a\n",
    b"DDS ",
    b"\x76\x2f\x31\x01",  # OpenEXR
    b"#?RADIANCE",
    b"SIMPLE  =",  # FITS
    b"\xd7\xcd\xc6\x9a",  # WMF
    b"gimp xcf",
)
_PNM = re.compile(rb"P[1-7][\t\n\r ]+(?:#|\d|WIDTH)")
# Atomic groups: a hostile run of comments is read once.
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*+(?>(?><\?xml[^>]*+>|<!--(?s:.*?)-->|<!DOCTYPE\s+svg[^>\[]*+(?:\[[^\]]*+\])?\s*+>)\s*+)*+"
    rb"<(?:svg:)?svg[\s>]",
    re.IGNORECASE,
)


def scan_headers(
    images: Sequence[Image | None],
    *,
    readable: Readable = "trailer",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> pa.Table:
    """Reads the headers of images; one row each, in order. Never raises on any bytes.

    Columns: `format` (jpg | png | webp), `width` and `height` as displayed (an EXIF orientation of 5 to 8 swaps them),
    `rotated` (it does), `problem` (see the table above; null for a usable image). The first four are null where
    nothing is known, and stay set beside a problem where they were read.
    """
    rows = [scan_header(image, readable=readable, max_pixels=max_pixels) for image in images]
    columns = zip(*rows, strict=True) if rows else ([] for _ in HEADER_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, HEADER_SCHEMA, strict=True)], HEADER_SCHEMA
    )


def scan_header(
    image: Image | None, *, readable: Readable = "trailer", max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[str | None, int | None, int | None, bool | None, str | None]:
    """One row of `scan_headers`: format, width, height, rotated, problem."""
    if image is None:
        return None, None, None, None, "missing"
    data = byte_view(image)
    if not len(data):
        return None, None, None, None, "empty"
    name, container = read_container(data)
    if name is None:
        return None, None, None, None, "format" if _is_other_image(data) else "not_image"
    if container is None:
        return name, None, None, None, "header"
    width, height, orientation, complete, animated = container
    rotated = orientation >= 5
    if rotated:
        width, height = height, width
    problem = None
    if animated:
        problem = "animated"
    elif width * height > max_pixels:
        problem = "too_many_pixels"
    elif not complete and readable != "header":
        problem = "truncated"
    elif readable == "decode" and not _decodes(data):
        problem = "decode"
    return name, width, height, rotated, problem


def read_container(data: memoryview) -> tuple[str | None, Container | None]:
    """Format by first bytes, and what its header says; (None, None) for anything but JPEG, PNG and WebP."""
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg", read_jpeg(data)
    if start.startswith(_PNG):
        return "png", read_png(data)
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return "webp", read_webp(data)
    return None, None


def byte_view(image: Image) -> memoryview:
    """The image as a memoryview of unsigned bytes; nothing is copied."""
    view = memoryview(image)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _is_other_image(data: memoryview) -> bool:
    start = bytes(data[:4096])
    if start.startswith(_OTHER_FORMATS):
        return True
    if start.startswith(b"BM"):  # the size of the second header is one of those that exist
        return int.from_bytes(start[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)
    if start[4:8] == b"ftyp":
        return start[8:12] in _ISO_BRANDS
    return _PNM.match(start) is not None or _SVG.match(start) is not None


def _decodes(data: memoryview) -> bool:
    from filters.pixels import Undecodable, check_decodes

    try:
        check_decodes(data)
    except Undecodable:
        return False
    return True
