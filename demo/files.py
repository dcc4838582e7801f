"""Image files of a demo web, good and bad.

The decision behind this module: a bad file is made from a good one in the way that the web makes it, so that only what
the defect's name says is wrong with it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, features

from demo.draw import draw
from demo.scenes import Scene

# EXIF orientation -> what is done to the upright picture before it is stored, so that a viewer turns it back.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
HAS_AVIF: bool = bool(features.check("avif"))


class Stored(NamedTuple):
    """A file's bytes, and its stored (width, height) in pixels, None for what no decoder opens."""

    data: bytes
    size: tuple[int, int] | None


def store(scene: Scene, kind: str | None, rng: random.Random) -> Stored:
    """The scene's picture as a file with defect `kind`, or as a good file for None."""
    if kind == "bad_header":
        return Stored(_bad_header(rng), None)
    if kind == "bomb":
        return Stored(_bomb(rng.choice((20_000, 30_000))), None)
    if kind == "animated_gif":
        return Stored(_gif(scene, rng), None)
    image = draw(scene)
    out = io.BytesIO()
    if kind == "truncated":
        data = web_bytes(image, rng)
        return Stored(data[: int(len(data) * rng.uniform(0.35, 0.85))], None)
    if kind == "avif":
        image.save(out, "AVIF", quality=50, speed=10)
        return Stored(out.getvalue(), None)
    if kind == "cmyk":
        image.convert("CMYK").save(out, "JPEG", quality=85)
        return Stored(out.getvalue(), image.size)
    if kind == "png_16bit":
        return Stored(_png16(image), image.size)
    if kind == "exif_rotation":
        orientation = rng.choice((6, 6, 6, 8, 8, 3, 2, 4, 5, 7))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = image.transpose(_STORED[orientation])
        stored.save(out, "JPEG", quality=rng.randint(70, 95), exif=exif)
        return Stored(out.getvalue(), stored.size)
    if kind is not None:
        raise ValueError(f"there is no image defect {kind!r}")
    return Stored(web_bytes(image, rng), image.size)


def web_bytes(image: Image.Image, rng: random.Random) -> bytes:
    """The image as a file the way the web ships them: JPEG of quality 60 to 95 mostly, some PNG, some WebP."""
    out = io.BytesIO()
    kind = rng.random()
    if kind < 0.84:
        image.save(out, "JPEG", quality=rng.randint(60, 95))
    elif kind < 0.91:
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "WEBP", quality=rng.randint(60, 92), method=0)
    return out.getvalue()


def _bad_header(rng: random.Random) -> bytes:
    """A file that begins and ends like a JPEG or a PNG, with a header in which no size can be found."""
    if rng.random() < 0.5:
        # A JFIF segment, then the end: there is no frame.
        noise = bytes(rng.randrange(1, 255) for _ in range(rng.randrange(200, 1500)))
        comment = b"\xff\xfe" + struct.pack(">H", len(noise) + 2) + noise
        return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + comment + b"\xff\xd9"
    size = struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"IEND", b"")


@lru_cache(maxsize=4)
def _bomb(side: int) -> bytes:
    """A one-colour PNG of side x side pixels, one bit each: some 50 to 110 KB that decode to hundreds of MB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png16(image: Image.Image) -> bytes:
    """An RGB PNG of 16 bits a channel, which Pillow reads but does not write; each value is v * 257."""
    w, h = image.size
    pixels = image.tobytes()
    wide = bytearray(2 * len(pixels))
    wide[0::2] = pixels
    wide[1::2] = pixels
    rows = b"".join(b"\x00" + bytes(wide[6 * w * y : 6 * w * (y + 1)]) for y in range(h))
    header = struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0)
    body = zlib.compress(rows, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _gif(scene: Scene, rng: random.Random) -> bytes:
    """The picture in two to four frames, moved a little in each."""
    w, h = scene.size
    shrink = min(1.0, 320 / min(w, h))
    first = draw(scene, (max(1, round(w * shrink)), max(1, round(h * shrink)))).quantize(32, Image.Quantize.FASTOCTREE)
    frames = [
        first.transform(first.size, Image.Transform.AFFINE, (1, 0, 4 * i, 0, 1, 0)) for i in range(1, rng.randint(2, 4))
    ]
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=frames, duration=120, loop=0)
    return out.getvalue()
