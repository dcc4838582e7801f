"""Image bytes to pixels: a full decode as a check, or an upright RGB picture at reduced scale for a vision model.

The decision behind this module: all formats come out the same way. EXIF orientation is applied (a caption tells of the
picture as people see it), transparency is laid on white (the background of nearly every web page), 16-bit grey is
scaled rather than clipped, and colour profiles are ignored, as in the training pipelines of CLIP models.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from filters.containers import Container
from filters.header import read_container

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's limit for a decompression bomb, twice its MAX_IMAGE_PIXELS; `max_pixels` of the header scan is the policy,
# this is the wall behind it.
_MOST_PIXELS = 178_956_970

# A JPEG may come out of the decoder at 1/2, 1/4 or 1/8 while both sides keep this many times the pixels asked for:
# Pillow calls the result of a factor 2 "almost indistinguishable" from full-scale resampling (`reducing_gap`); a test
# holds the scores of real photographs to 2e-3 on average and 1e-2 at the 99th percentile.
_HEAD_ROOM = 2

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Undecodable(ValueError):
    """These bytes give no picture; the message is one line that says why."""


def check_decodes(data: memoryview) -> None:
    """Decodes the whole image at full scale, raises `Undecodable` if that fails."""
    _load(_open(data), None)


def read_rgb(data: memoryview, side: int | None = None) -> Image:
    """The picture as displayed, in RGB; raises `Undecodable`.

    side: the side of the square, in pixels, that a model will see; a JPEG is then decoded at a reduced scale that
    leaves both sides at least twice as long. None decodes at full scale.
    """
    image = _load(_open(data), side)
    container = read_container(data)[1]
    try:
        return _upright(_to_rgb(image), container)
    except Exception as error:
        raise Undecodable(_one_line(error)) from error


def _open(data: memoryview) -> Image:
    """The image with its header read and its size checked; no pixel is decoded."""
    from PIL import Image

    name, container = read_container(data)
    if name is None or container is None:
        raise Undecodable("no JPEG, PNG or WebP header")
    if container.width * container.height > _MOST_PIXELS:
        raise Undecodable(f"{container.width}x{container.height} pixels are too many")
    # Decoders raise nearly every kind of exception on hostile bytes: OSError, SyntaxError, ValueError (a PNG text
    # chunk that unpacks to gigabytes), struct.error, DecompressionBombError, which is none of them.
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Exception as error:
        raise Undecodable(_one_line(error)) from error


def _load(image: Image, side: int | None) -> Image:
    try:
        if side is not None:
            image.draft(None, (_HEAD_ROOM * side, _HEAD_ROOM * side))
        image.load()
    except Exception as error:
        raise Undecodable(_one_line(error)) from error
    return image


def _to_rgb(image: Image) -> Image:
    """Any mode that JPEG, PNG and WebP come in, as RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: 0 to 65535 becomes 0 to 255, where convert() would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _upright(image: Image, container: Container | None) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(container.orientation) if container else None
    return image if turn is None else image.transpose(turn)


def _one_line(error: Exception) -> str:
    """Type and message; without object addresses, which would make two equal runs write different ledgers."""
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:200]
