"""Walks over the headers of a tar of pairs: its samples, where to cut it, and which keys came before a cut.

The one decision behind this module: planning, which has to walk over a large tar anyway, tells each range what it must
know of the bytes before it, so that reading a range reads the range.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from shards.storage import Storage
from shards.tar import Archive, Member, TarError, TarSample, cut_samples, group, scan
from shards.window import walking

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "jxl", "svg", "ico", "img", "image", "bin"),
)


class TarRange(NamedTuple):
    """Bytes [start, stop) of a tar. `earlier`: how often keys of the range stand before it, where they do at all."""

    start: int
    stop: int
    samples: int
    key_width: int  # characters of the file's first key
    earlier: dict[str, int]


def samples_of(archive: Archive, start: int = 0, stop: int | None = None) -> tuple[list[TarSample], str | None]:
    """The samples of a range as far as it is whole, and what is wrong behind the last member, if anything."""
    members: list[Member] = []
    damage = None
    try:
        members.extend(scan(archive, start, stop))  # keeps what came before an error
    except TarError as error:
        damage = str(error)
    return [told for sample in group(iter(members)) for told in told_apart(sample)], damage


def told_apart(sample: TarSample) -> list[TarSample]:
    """The samples that WebDataset takes for one because of dots in their names (`a.v0.jpg`, `a.v1.jpg`).

    Their keys have a dot, so that each is a row; where the sample has an image of its own they are its further fields.
    """
    if "." not in "".join(sample.parts):  # nearly always
        return [sample]
    stems: dict[str, dict[str, Member]] = {}
    for extension, member in sample.parts.items():
        stem, _, last = extension.rpartition(".")
        stems.setdefault(stem, {})[last] = member
    images = [stem for stem, parts in stems.items() if not parts.keys().isdisjoint(IMAGE_EXTENSIONS)]
    if "" in images or not images:
        return [sample]
    return [sample._replace(key=f"{sample.key}.{stem}", parts=stems[stem]) for stem in images]


def count_keys(storage: Storage, path: str, size: int, start: int, stop: int | None) -> tuple[Counter[str], str | None]:
    """How often each key stands in a range of a tar, in their order, and what is wrong with the range.

    On an object store reads the range in blocks; holds the keys alone.
    """
    keys: Counter[str] = Counter()
    with walking(storage, path, size) as archive:
        try:
            for sample in group(scan(archive, start, stop)):
                keys.update(told.key for told in told_apart(sample))
        except TarError as error:
            return keys, str(error)
    return keys, None


def cut_tar(storage: Storage, path: str, size: int, max_samples: int, max_bytes: int) -> list[TarRange]:
    """The ranges of a tar (see `shards.tar.cut`), by one walk over it. Holds about 150 bytes a sample."""
    first: dict[str, int] = {}  # where a key stands first
    again: dict[str, list[int]] = defaultdict(list)  # where it stands after that

    def watched(samples: Iterator[TarSample]) -> Iterator[TarSample]:
        for sample in samples:
            for told in told_apart(sample):
                if first.setdefault(told.key, sample.start) != sample.start:
                    again[told.key].append(sample.start)
            yield sample

    with walking(storage, path, size) as archive:
        ranges = cut_samples(watched(group(scan(archive))), size, max_samples, max_bytes)
    starts = [start for start, _, _ in ranges]
    earlier: list[dict[str, int]] = [{} for _ in ranges]
    for key, positions in again.items():
        places = [bisect_right(starts, position) - 1 for position in (first[key], *positions)]
        for place in set(places):
            before = sum(other < place for other in places)
            if before:
                earlier[place][key] = before
    width = len(next(iter(first), ""))
    return [TarRange(*cut, width, known) for cut, known in zip(ranges, earlier, strict=True)]
