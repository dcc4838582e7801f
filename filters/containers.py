"""Size, orientation and completeness of JPEG, PNG and WebP files, read from their bytes without decoding them.

The decision behind this module: it walks the containers itself, on a memoryview. Opening every image with a decoder
library to learn two integers takes ten times as long; a walk touches a few hundred bytes of a mapped file and copies
none of the picture. Every loop ends: it moves forward by at least two bytes
a turn and stops after a fixed number of turns, so hostile bytes cost linear time.

The functions give None where the container is broken: it has the right first bytes but no size that a decoder takes.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple


class Container(NamedTuple):
    """What a container says of its picture: the stored size (before EXIF orientation) and the state of the file."""

    width: int
    height: int
    orientation: int  # EXIF, 1 to 8; 1 where the file says nothing usable
    complete: bool  # the end mark is there (JPEG EOI, PNG IEND, all bytes that a WebP announces)
    animated: bool


# Far above real files: a JPEG has at most 255 ICC and some hundred XMP segments before its scan; libpng writes 8 KiB
# a chunk, so 65,536 chunks are half a gigabyte. The first IFD of a camera has 10 to 30 entries.
_MAX_SEGMENTS = 2_000
_MAX_CHUNKS = 65_536
_MAX_ENTRIES = 256

_segment = struct.Struct(">BBH").unpack_from  # FF, marker, length
_frame = struct.Struct(">BHHB").unpack_from  # bits a sample, height, width, components
_png_header = struct.Struct(">I4sIIBBBBBI").unpack_from  # length, IHDR, its seven fields, CRC
_png_chunk = struct.Struct(">I4s").unpack_from
_riff_chunk = struct.Struct("<4sI").unpack_from
_big, _little = struct.Struct(">HHI4s"), struct.Struct("<HHI4s")

_MARKER = re.compile(rb"\xff[\x01-\xfe]")  # a JPEG marker after fill bytes or junk; linear, unlike \xff+[...]
_EOI = re.compile(rb"\xff\xd9")
# Frame headers that hold a size: all of C0 to CF but DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI: no length follows
_PNG_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}  # colour type: bits


def read_jpeg(data: memoryview) -> Container | None:
    """Reads a JPEG: `data` begins with FF D8 FF.

    Complete means that an end mark follows the start of the scan: entropy-coded data cannot contain one, so a file
    cut in its picture has none, and whatever is appended to a whole picture (padding, a second picture, a video)
    does no harm. None also for a JPEG that only special decoders take (12 bits a sample, 2 components).
    """
    size, position = len(data), 2
    width = height = 0
    orientation: int | None = None
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > size:
            break
        first, marker, length = _segment(data, position)
        if first != 0xFF or not 0 < marker < 0xFF:
            found = _MARKER.search(data, position)
            if found is None or found.start() + 4 > size:
                break
            position = found.start()
            _, marker, length = _segment(data, position)
        if marker == 0xDA:
            if not width:
                return None
            complete = bytes(data[-2:]) == b"\xff\xd9" or _EOI.search(data, position) is not None
            return Container(width, height, orientation or 1, complete, False)
        if marker in _STANDALONE:
            position += 2
            continue
        if marker < 0xC0 or marker == 0xD9 or length < 2:
            return None
        if marker in _FRAMES:
            if position + 10 > size:
                break
            bits, height, width, components = _frame(data, position + 4)
            if bits != 8 or components not in (1, 3, 4) or not width or not height:
                return None
        elif marker == 0xE1 and orientation is None and bytes(data[position + 4 : position + 10]) == b"Exif\0\0":
            orientation = read_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    else:
        return None
    return Container(width, height, orientation or 1, False, False) if width else None


def read_png(data: memoryview) -> Container | None:
    """Reads a PNG: `data` begins with the eight bytes of its signature. APNG with several frames is animated."""
    if len(data) < 33:
        return None
    length, kind, width, height, bits, colour, compression, filtering, interlace, checksum = _png_header(data, 8)
    if (length, kind) != (13, b"IHDR") or not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        return None
    if bits not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        return None
    if zlib.crc32(data[12:29]) != checksum:
        return None
    size, position = len(data), 33
    orientation, animated, pictured = 1, False, False
    for _ in range(_MAX_CHUNKS):
        if position + 12 > size:
            break
        length, kind = _png_chunk(data, position)
        if kind == b"IDAT":
            pictured = True
        elif kind == b"IEND":
            return Container(width, height, orientation, pictured, animated)
        elif kind == b"eXIf":
            orientation = read_orientation(data[position + 8 : position + 8 + length])
        elif kind == b"acTL" and not pictured:
            animated = length == 8 and bytes(data[position + 8 : position + 12]) != b"\0\0\0\x01"
        position += 12 + length
    else:
        return None
    return Container(width, height, orientation, False, animated)


def read_webp(data: memoryview) -> Container | None:
    """Reads a WebP: `data` begins with RIFF, a size, WEBP. The animation flag alone makes it animated."""
    if len(data) < 30:
        return None
    end = 8 + int.from_bytes(data[4:8], "little")
    complete = end <= len(data)
    end = min(end, len(data))
    kind, length = _riff_chunk(data, 12)
    if kind != b"VP8X":
        simple = _webp_frame(data, 12, kind)
        return simple and Container(*simple, 1, complete and 20 + length <= end, False)
    has_exif, animated = bool(data[20] & 0x08), bool(data[20] & 0x02)
    width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    orientation, pictured, position = 1, animated, 20 + length + (length & 1)
    for _ in range(_MAX_CHUNKS):
        if position + 8 > end or (pictured and not has_exif):
            break
        kind, length = _riff_chunk(data, position)
        if kind == b"EXIF" and has_exif:
            orientation = read_orientation(data[position + 8 : min(position + 8 + length, end)])
            has_exif = False
        elif kind in (b"VP8 ", b"VP8L"):
            pictured = position + 8 + length <= end
        position += 8 + length + (length & 1)
    return Container(width, height, orientation, complete and pictured, animated)


def _webp_frame(data: memoryview, position: int, kind: bytes) -> tuple[int, int] | None:
    """The size in a chunk `VP8 ` (lossy) or `VP8L` (lossless); None for any other chunk or a broken frame."""
    body = bytes(data[position + 8 : position + 18])
    if kind == b"VP8 " and not body[0] & 1 and body[3:6] == b"\x9d\x01\x2a":  # a key frame and its start code
        width, height = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        return (width, height) if width and height else None
    if kind == b"VP8L" and body[0] == 0x2F:
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    return None


def read_orientation(exif: memoryview) -> int:
    """The orientation (1 to 8) in a block of EXIF, with or without the prefix `Exif`; 1 if it has none that is valid.

    Only EXIF counts, not XMP, as in browsers.
    """
    if bytes(exif[:6]) == b"Exif\0\0":
        exif = exif[6:]
    order = bytes(exif[:4])
    if order == b"II*\0":
        endian, entry = "little", _little
    elif order == b"MM\0*":
        endian, entry = "big", _big
    else:
        return 1
    start = int.from_bytes(exif[4:8], endian)  # type: ignore[arg-type]
    count = int.from_bytes(exif[start : start + 2], endian)  # type: ignore[arg-type]
    table = exif[start + 2 : start + 2 + 12 * min(count, _MAX_ENTRIES)]
    for tag, kind, values, raw in entry.iter_unpack(table[: len(table) // 12 * 12]):
        if tag == 0x0112:
            width = {1: 1, 3: 2, 4: 4}.get(kind, 0)  # BYTE, SHORT, LONG
            value = int.from_bytes(raw[:width], endian)  # type: ignore[arg-type]
            return value if values == 1 and 1 <= value <= 8 else 1
    return 1
