"""Inputs that nobody would choose: captions of 1 MB, a tar of 100,000 tiny samples, images of 48 and of 96 megapixels.

Bytes are made, not drawn: what counts is how many, and that they decode.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.corpus import captions
from benchmarks.sides import folder_name

TINY, HUGE, LONG, LONG_BYTES = 100_000, 50, 200, 1_000_000
# Judging text costs by the MB: of these few are enough.
JUDGED = 20

# Key, ending of the image, image, caption.
Sample = tuple[str, str, bytes, bytes]


class Odd(NamedTuple):
    """A folder of one tar. settings: of its profile."""

    name: str
    tars: Path
    samples: int
    settings: Mapping[str, Any]


def odd_inputs(home: Path, tiny: int = TINY, huge: int = HUGE, long: int = LONG, judged: int = JUDGED) -> list[Odd]:
    """Writes them, each a tar in a folder of its own."""
    picture = small_png()
    texts = captions(0)
    # Many captions as one, over and over where they are few; cut at a whole character.
    joined = " ".join(texts[: LONG_BYTES // 20]).encode()
    caption = (joined * (LONG_BYTES // len(joined) + 1))[:LONG_BYTES].decode(errors="ignore").encode()
    captioned = [(f"{number:06d}", "png", picture, caption) for number in range(long)]
    words = [text.encode() for text in texts]
    small = [(f"{number:09d}", "png", picture, words[number % len(words)]) for number in range(tiny)]
    made = []
    for name, samples, settings in (
        ("captions of 1 MB", captioned, {}),
        ("captions of 1 MB, judged", captioned[:judged], {"max_caption_chars": 2 * LONG_BYTES}),
        (f"{tiny:,} tiny samples", small, {}),
        ("images of 8000 x 6000", huge_samples((8000, 6000), huge, words), {}),
        ("images of 12000 x 8000", huge_samples((12000, 8000), huge, words), {}),
    ):
        folder = home / folder_name(name)
        count = write_tar(folder / "00000.tar", samples)
        made.append(Odd(name, folder, count, settings))
    return made


def write_tar(path: Path, samples: Iterable[Sample]) -> int:
    """A tar of these samples; gives how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, ending, image, caption in samples:
            for name, data in ((f"{key}.{ending}", image), (f"{key}.txt", caption)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            count += 1
    return count


def small_png() -> bytes:
    """An image of some 100 bytes that every filter keeps."""
    out = io.BytesIO()
    Image.new("RGB", (320, 240), (200, 30, 60)).quantize(2).save(out, "PNG")
    return out.getvalue()


def huge_samples(size: tuple[int, int], count: int, texts: Sequence[bytes]) -> Iterator[Sample]:
    """Samples with one and the same JPEG of that size, 6 MB or more."""
    width, height = size
    coarse = Image.frombytes("RGB", (width // 40, height // 40), random.Random(0).randbytes(3 * width * height // 1600))
    out = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    for number in range(count):
        yield f"{number:06d}", "jpg", out.getvalue(), texts[number % len(texts)]
