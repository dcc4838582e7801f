"""Ways from an image's bytes to what a CLIP model sees, for benchmarks.clip: ours, and the cheapest of others.

A way takes bytes, the side of the square and whether the picture is squashed to it (else its middle is cut out), and
gives normalised pixels (3, side, side). All but ours and open_clip's own leave out what costs time and what these
images do not need: no look at the header, no orientation, no transparency; the crop is told to the resize, which then
makes no pixel that is thrown away; scaling and normalising are one step. Formats that a decoder does not have take
Pillow's way. "2x" is a JPEG decoder's reduced scale that leaves both sides at least twice the model's.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.clip_models import PREPROCESS
from benchmarks.measure import BenchmarkError, say
from benchmarks.peers import environment
from filters.pixels import read_rgb
from filters.square import Square

Way = Callable[[bytes, int, bool], torch.Tensor]
FULL, OURS = "open_clip's own, full scale", "ours"
_MEAN, _STD = (np.array(PREPROCESS[name], np.float32) for name in ("mean", "std"))
_SCALE, _SHIFT = (torch.from_numpy(values).view(3, 1, 1) for values in (1 / (255 * _STD), -_MEAN / _STD))


def ways(work: Path | None = None) -> dict[str, Way]:
    """By name, those whose libraries are here. work: where simplejpeg's environment is, or made; None: without it."""
    found: dict[str, Way] = {
        FULL: full,
        OURS: ours,
        "Pillow, full scale": partial(pillow, room=None),
        "Pillow 3x": partial(pillow, room=3),
        "Pillow 2x": partial(pillow, room=2),
        "Pillow 1x": partial(pillow, room=1),
        "Pillow, full scale, torch's resize": partial(pillow_torch, room=None),
        "Pillow 2x, torch's resize": partial(pillow_torch, room=2),
        "torchvision, full scale": torchvision,
    }
    if importlib.util.find_spec("cv2"):
        found |= {"OpenCV, full scale": partial(opencv, room=None), "OpenCV 2x": partial(opencv, room=2)}
        found |= {"OpenCV 1x": partial(opencv, room=1)}
    if work is not None and importlib.util.find_spec("cv2"):
        try:
            python = environment(work, "simplejpeg", "simplejpeg")
        except BenchmarkError as error:
            say(f"left out: {error}")
            return found
        # Last in the path: nothing but simplejpeg itself is taken from there.
        sys.path.append(str(next((python.parents[1] / "lib").glob("python*/site-packages"))))
        found |= {"simplejpeg 2x, OpenCV's resize": partial(simple, room=2)}
    return found


def full(data: bytes, side: int, squash: bool) -> torch.Tensor:
    return _prepare(side, squash)(Image.open(io.BytesIO(data)))


def ours(data: bytes, side: int, squash: bool) -> torch.Tensor:
    return _square(side, squash)(read_rgb(memoryview(data), side))


def pillow(data: bytes, side: int, squash: bool, room: int | None) -> torch.Tensor:
    image, borders = _loaded(data, side, room)
    box = _middle(*borders, squash)
    return _normal(torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=box))))


def pillow_torch(data: bytes, side: int, squash: bool, room: int | None) -> torch.Tensor:
    image, borders = _loaded(data, side, room)
    return _resized(torch.from_numpy(np.array(image)).permute(2, 0, 1), side, squash, borders)


def torchvision(data: bytes, side: int, squash: bool) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    if not _is_jpeg(data):
        return pillow_torch(data, side, squash, None)
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return _resized(decode_jpeg(pixels, mode=ImageReadMode.RGB), side, squash)


def opencv(data: bytes, side: int, squash: bool, room: int | None) -> torch.Tensor:
    import cv2

    if not _is_jpeg(data):
        return pillow(data, side, squash, None)
    factor = 1 if room is None else _factor(Image.open(io.BytesIO(data)).size, side * room)
    flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}.get(factor)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8 if flag is None else flag)
    return _normal(torch.from_numpy(cv2.cvtColor(_area(pixels, side, squash), cv2.COLOR_BGR2RGB)))


def simple(data: bytes, side: int, squash: bool, room: int) -> torch.Tensor:
    import simplejpeg

    if not _is_jpeg(data):
        return pillow(data, side, squash, None)
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=side * room, min_width=side * room, min_factor=1)
    return _normal(torch.from_numpy(_area(pixels, side, squash)))


@cache
def _prepare(side: int, squash: bool) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**_told(side, squash)), is_train=False)


@cache
def _square(side: int, squash: bool) -> Square:
    found = Square.of(_told(side, squash))
    assert found is not None
    return found


def _told(side: int, squash: bool) -> dict[str, Any]:
    return {**PREPROCESS, "size": side, "resize_mode": "squash" if squash else "shortest"}


def _loaded(data: bytes, side: int, room: int | None) -> tuple[Image.Image, tuple[float, float]]:
    """The picture in RGB, and where it ends in it: a reduced side is rounded up."""
    image = Image.open(io.BytesIO(data))
    reduced = None if room is None else image.draft("RGB", (room * side, room * side))
    return image.convert("RGB"), image.size if reduced is None else reduced[1][2:]


def _middle(width: float, height: float, squash: bool) -> tuple[float, float, float, float]:
    if squash:
        return 0, 0, width, height
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return left, top, left + short, top + short


def _resized(pixels: torch.Tensor, side: int, squash: bool, borders: tuple[float, float] | None = None) -> torch.Tensor:
    """(3, height, width) of bytes by torch's bicubic with antialiasing, which is Pillow's to a rounding.

    borders: where the picture ends in them, if not at their end.
    """
    from torch.nn.functional import interpolate

    width, height = borders or (pixels.shape[2], pixels.shape[1])
    short = min(width, height)
    size = (side, side) if squash else (int(side * height / short), int(side * width / short))
    if borders is None or borders == (pixels.shape[2], pixels.shape[1]):
        small = interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    else:  # lengths are cut off to whole pixels: the factors leave a little more than `size`
        factors = ((size[0] + 1e-3) / height, (size[1] + 1e-3) / width)
        small = interpolate(pixels[None], scale_factor=factors, mode="bicubic", antialias=True)[0]
    top, left = (round((length - side) / 2) for length in size)
    return torch.addcmul(_SHIFT, small[:, top : top + side, left : left + side].float(), _SCALE)


def _area(pixels: np.ndarray, side: int, squash: bool) -> np.ndarray:
    """Averaged over areas, which is OpenCV's only resize that does not alias."""
    import cv2

    left, top, right, bottom = map(int, _middle(pixels.shape[1], pixels.shape[0], squash))
    cut: np.ndarray = cv2.resize(pixels[top:bottom, left:right], (side, side), interpolation=cv2.INTER_AREA)
    return cut


def _normal(pixels: torch.Tensor) -> torch.Tensor:
    """(side, side, 3) of bytes as the model takes it."""
    return torch.addcmul(
        _SHIFT, pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format), _SCALE
    )


def _factor(size: tuple[int, int], least: int) -> int:
    return next((factor for factor in (8, 4, 2) if min(size) // factor >= least), 1)


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")
