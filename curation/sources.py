"""Reads one unit of raw pairs: img2dataset tars with their Parquet, plain WebDataset tars, or Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curation.parquet_source import read_parquet, read_table, records
from curation.profile import Profile
from curation.raw import Raw, SourceError, fetch_reason
from curation.units import Unit, sidecar_path, tar_samples
from shards.storage import Storage
from shards.tar import Member, TarSample

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "jxl", "svg", "ico", "img", "image", "bin"),
)


def read_unit(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    """Raises `SourceError` or `StorageError` where the file as a whole cannot be read."""
    if profile.input.format == "parquet":
        return read_parquet(profile, storage, unit)
    return _read_tar(profile, storage, unit)


def _read_tar(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    """Rows of a tar, or of a range of it: the ranges' rows together are those of the whole file.

    A sample is known by its key and by how often that key stood before it in the file, so that a range knows a repeated
    key of an earlier one, and the first range answers for what the side-car lists and the whole tar does not hold.
    """
    buffer = storage.view(unit.path)
    raw = Raw()
    samples, damage = _samples(buffer, unit.start or 0, unit.stop)
    before = Counter(sample.key for sample in _samples(buffer, 0, unit.start)[0]) if unit.start else Counter[str]()
    total, rest_damage = before + Counter(sample.key for sample in samples), None
    if unit.heads_file and unit.stop is not None and unit.stop < len(buffer):
        rest, rest_damage = _samples(buffer, unit.stop, None)
        total += Counter(sample.key for sample in rest)
    if damage:
        raw.warnings.append(f"{unit.path}: {damage}; the samples before it were read")
    view = memoryview(buffer).cast("B")
    held: dict[tuple[str, int], TarSample] = {}
    counts = Counter(before)
    for sample in samples:
        held[sample.key, counts[sample.key]] = sample
        counts[sample.key] += 1
    listed: Counter[str] = Counter()
    for row in _sidecar(profile, storage, unit, raw, total):
        key = row["key"]
        nth, listed[key] = listed[key], listed[key] + 1
        found = held.pop((key, nth), None)
        if found is not None:
            _add_sample(raw, profile, view, found, row, _repeated(key, nth))
        elif unit.heads_file and nth >= total[key]:
            problem = _repeated(key, nth)
            if row.get("status", "success") != "success":
                problem = f"fetch:{fetch_reason(row.get('error_message'))}"
            elif problem is None:
                problem = f"unreadable:{'truncated_tar' if damage or rest_damage else 'missing'}"
            raw.add(key, None, _caption_column(profile, row), row, problem)
    for (key, nth), sample in held.items():
        problem = _repeated(key, nth)
        if damage and sample is samples[-1] and problem is None and not _complete(profile, sample):
            problem = "unreadable:truncated_tar"
        _add_sample(raw, profile, view, sample, None, problem)
    return raw


def _repeated(key: str, nth: int) -> str | None:
    if "." in key.rpartition("/")[2]:
        return "unreadable:key_with_dot"
    return "unreadable:duplicate_key" if nth else None


def _samples(buffer: pa.Buffer, start: int, stop: int | None) -> tuple[list[TarSample], str | None]:
    """The samples of a range, and what is wrong behind the last.

    Names with dots (`a.v0.jpg`, `a.v1.jpg`) are one sample to WebDataset. They are told apart here, under keys with a
    dot, so that each is a row; where the sample has an image of its own they are its further fields.
    """
    samples, damage = tar_samples(buffer, start, stop)
    told: list[TarSample] = []
    for sample in samples:
        stems: dict[str, dict[str, Member]] = {}
        for extension, member in sample.parts.items():
            stem, _, last = extension.rpartition(".")
            stems.setdefault(stem, {})[last] = member
        images = [stem for stem, parts in stems.items() if not parts.keys().isdisjoint(IMAGE_EXTENSIONS)]
        if "" in images or not images:
            told.append(sample)
        else:
            told += [sample._replace(key=f"{sample.key}.{stem}", parts=stems[stem]) for stem in images]
    return told, damage


def _sidecar(profile: Profile, storage: Storage, unit: Unit, raw: Raw, held: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of img2dataset's Parquet beside the tar, failed downloads included, each with its key as text.

    held: keys of the tar, from its beginning to the end of the range at least.
    """
    if profile.input.format != "img2dataset":
        return []
    path = sidecar_path(unit.path)
    if not storage.exists(path):
        raw.warnings.append(f"{unit.path}: no {path} beside it, so its failed downloads are unknown")
        return []
    rows = records(read_table(storage, path), path, raw.warnings)
    if rows and "key" not in rows[0]:
        raise SourceError(f"{path}: no column 'key': is this a Parquet file that img2dataset wrote?")
    # Other tools make numbers of the keys; img2dataset pads them to one width.
    width = len(next(iter(held), ""))
    for row in rows:
        row["key"] = str(row["key"]).zfill(width) if isinstance(row["key"], int) else str(row["key"])
    if held and rows and held.keys().isdisjoint(row["key"] for row in rows):
        raise SourceError(f"{path}: not one of its keys is in {unit.path}: put the Parquet of this tar beside it")
    return rows


def _complete(profile: Profile, sample: TarSample) -> bool:
    return _image_part(profile, sample) is not None and (profile.columns.caption or "txt") in sample.parts


def _image_part(profile: Profile, sample: TarSample) -> str | None:
    if profile.columns.image is not None:
        return profile.columns.image if profile.columns.image in sample.parts else None
    return next((extension for extension in IMAGE_EXTENSIONS if extension in sample.parts), None)


def _add_sample(
    raw: Raw,
    profile: Profile,
    view: memoryview,
    sample: TarSample,
    row: Mapping[str, Any] | None,
    problem: str | None,
) -> None:
    def part(extension: str) -> memoryview:
        member = sample.parts[extension]
        return view[member.offset : member.offset + member.size]

    if row is None:
        row = _json_object(part("json")) if "json" in sample.parts else {}
    image = _image_part(profile, sample)
    name = profile.columns.caption or "txt"
    caption: bytes | str | None
    if name in sample.parts:
        caption = bytes(part(name))
    else:
        caption = _caption_column(profile, row)
    raw.add(sample.key, part(image) if image else None, caption, row, problem)


def _json_object(data: memoryview) -> dict[str, Any]:
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return {"json": "not valid JSON"}
    return value if isinstance(value, dict) else {"json": value}


def _caption_column(profile: Profile, row: Mapping[str, Any]) -> bytes | str | None:
    """The caption where it stands in a column (or, for a failed download, in img2dataset's own `caption`)."""
    value = row.get(profile.columns.caption or "caption", row.get("caption"))
    if value is None or isinstance(value, bytes | str):
        return value
    return str(value)
