"""Image bytes to pixels: a full decode as a check, or an upright RGB picture at reduced scale for a vision model.

The decision behind this module: all formats come out the same way. EXIF orientation is applied (a caption tells of the
picture as people see it), transparency is laid on white (the background of nearly every web page), 16-bit grey is
scaled rather than clipped, and colour profiles are ignored, as in the training pipelines of CLIP models.

Reduced scale is a JPEG decoder's own: it puts out 1/2, 1/4 or 1/8 of the picture at a part of the cost. Two things move
a score by it. A side that the factor does not divide is rounded up, so the last pixel stands for less than the others
and the picture is stretched by up to half a percent: that is undone by a resize that knows the true borders. The rest
falls with the head room, how many times the pixels of the model both sides keep. Cosines of the demo's CLIP (64 px)
on 1,170 real photographs of 80 to 1,066 pixels, of which the head room lets so many be reduced, against plain
open_clip on full-scale pictures:

| head room | borders | reduced | their mean | their 99 % | all: mean | 99 % | greatest | time to decode and resize |
|---|---|---|---|---|---|---|---|---|
| 2 | rounded | 731 | 0.0021 | 0.0135 | 0.0013 | 0.0120 | 0.033 | 0.54 of full scale |
| 2 | true | 731 | 0.0010 | 0.0053 | 0.0006 | 0.0045 | 0.019 | 0.54 |
| 3 | true | 469 | 0.0008 | 0.0043 | 0.0003 | 0.0033 | 0.019 | 0.64 |
| 4 | true | 190 | 0.0005 | 0.0026 | 0.0001 | 0.0014 | 0.004 | about 0.8 |

`test_reduced_decoding_hardly_moves_the_scores_of_the_demos_clip` in tests/filters/test_pixels.py holds the scores to
2e-3 on average and 1e-2 at the 99th percentile, over the reduced photographs alone.
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

# A JPEG may come out of the decoder at 1/2, 1/4 or 1/8 while both sides keep this many times the pixels asked for; the
# table above says why 3.
_HEAD_ROOM = 3

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Undecodable(ValueError):
    """These bytes give no picture; the message is one line that says why."""


def check_decodes(data: memoryview) -> None:
    """Decodes the whole image at full scale, raises `Undecodable` if that fails."""
    _load(_open(data), None)


def read_rgb(data: memoryview, side: int | None = None) -> Image:
    """The picture as displayed, in RGB; raises `Undecodable`.

    side: the side of the square, in pixels, that a model will see; a JPEG is then decoded at a reduced scale that
    leaves both sides at least three times as long. None decodes at full scale.
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
    from PIL.Image import Resampling

    try:
        reduced = None if side is None else image.draft(None, (_HEAD_ROOM * side, _HEAD_ROOM * side))
        image.load()
        if reduced is not None:
            borders = reduced[1]  # of the picture, in reduced pixels: (0, 0, 187.5, 125.0) of 188 x 125
            if borders[2:] != image.size:
                return image.resize(image.size, Resampling.BICUBIC, box=borders)
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
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


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
