"""Where a shard's samples wait, in a file of the worker's own disk, until all of them came: img2dataset's writer.

The one decision: img2dataset hands samples over as answers arrive, in an order that no second run repeats, and writes
its tar in place. Here nothing is written into the data set before the shard is whole; then its tar is built in the
order of the list, from the mapped spool, and published by one rename or one upload.
"""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any

from filters.header import DEFAULT_MAX_PIXELS, read_container, scan_header

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


class Spool:
    """img2dataset's sample writer over one file of image bytes; `metas` maps keys to what is known of them."""

    def __init__(self, path: Path) -> None:
        self.metas: dict[str, dict[str, Any]] = {}
        self.error: OSError | None = None
        self._spans: dict[str, tuple[int, int]] = {}
        self._file = path.open("w+b")
        path.unlink()  # however the worker ends, its disk is free again
        self._map: mmap.mmap | None = None

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """img2dataset calls it once a sample, from one thread; `image` is None where the fetch failed."""
        if image is not None:
            try:
                start = self._file.tell()
                self._file.write(image)
                self._file.flush()
            except OSError as error:
                self.error = self.error or error  # img2dataset would make a failed download of it
                raise
            self._spans[key] = (start, start + len(image))
        self.metas[key] = meta

    def close(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error

    def rename(self, names: dict[str, str]) -> None:
        """Gives samples other keys."""
        self.metas = {names[key]: meta for key, meta in self.metas.items()}
        self._spans = {names[key]: span for key, span in self._spans.items()}

    def image(self, key: str) -> memoryview | None:
        """The bytes of a fetched image, mapped; to be asked after `close`."""
        span = self._spans.get(key)
        if span is None:
            return None
        if span[0] == span[1]:
            return memoryview(b"")
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._map)[span[0] : span[1]]


class KeepBytes:
    """In the place of img2dataset's resizer: the source's bytes as they came, with the size that their header tells.

    What is no image at all does not count as arrived: an empty body, and text such as the page of an error. All else is
    kept for curation to judge, also formats that nothing here can read.
    """

    def __call__(self, stream: Any, boxes: Any = None) -> Resized:
        data = stream.read()
        if problem := no_image(data):
            return failed(problem)
        width, height = stored_size(data)
        return data, width, height, width, height, None


class Guarded:
    """img2dataset's resizer behind the header's pixel count: nothing that would not fit into memory is decoded.

    It drops the EXIF tag that says how a picture lies, and cuts off values of more than 8 bits: what it would encode
    anew is turned upright and reduced to 8 bits before.
    """

    def __init__(self, resizer: Any, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.resizer = resizer
        self.max_pixels = max_pixels

    def __call__(self, stream: Any, boxes: Any = None) -> Resized:
        data = stream.read()
        if problem := no_image(data):
            return failed(problem)
        *_, problem = scan_header(data, readable="header", max_pixels=self.max_pixels)
        if problem == "too_many_pixels":
            return failed("image area too large")
        if problem == "format":  # no size can be read before decoding it
            return failed("format that is not decoded")
        stream.seek(0)
        resized: Resized = self.resizer(stream, boxes)
        _, container = read_container(memoryview(data))
        if resized[0] is None or resized[0] == data or container is None:
            return resized
        width, height, orientation, *_ = container
        if orientation <= 1 and not _wide(data):
            return resized
        plain, problem = upright(data)
        if plain is None:
            return failed(problem)
        image, new_width, new_height, *_, problem = self.resizer(io.BytesIO(plain), boxes)
        # The original size as stored: who reads it turns it by the EXIF column.
        return image, new_width, new_height, width, height, problem


def _wide(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits a channel."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"


def upright(data: bytes) -> tuple[bytes | None, str | None]:
    """The picture as a PNG of 8 bits, turned as its EXIF tag says; or None and why not."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits of grey
                picture = picture.point(lambda value: value / 256).convert("L")
            out = io.BytesIO()
            (picture if picture.mode in ("RGB", "RGBA", "L") else picture.convert("RGB")).save(
                out, "PNG", compress_level=1
            )
    except Exception:  # noqa: BLE001  decoders raise anything on hostile bytes
        return None, "image decoding error"
    return out.getvalue(), None


def stored_size(data: bytes | memoryview) -> tuple[int | None, int | None]:
    """(width, height) as stored, before any EXIF rotation: what img2dataset's columns mean by them."""
    _, width, height, rotated, _ = scan_header(data, readable="header")
    return (height, width) if rotated else (width, height)


def failed(problem: str | None) -> Resized:
    """What a resizer answers for an image that it does not give."""
    return None, None, None, None, None, problem


def no_image(data: bytes) -> str | None:
    """Why a body does not count as an image that arrived; None where it does."""
    if not data:
        return "empty body"
    return "not an image" if is_text(data) else None


def is_text(data: bytes) -> bool:
    """Whether a body is markup or JSON rather than an image of any format."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return start[:1] in (b"<", b"{", b"[") and b"\0" not in start
