"""Reads one unit of raw pairs: img2dataset tars with their Parquet, plain WebDataset tars, or Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from curation.parquet_source import read_parquet, read_table, records
from curation.profile import Profile
from curation.raw import Raw, SourceError, fetch_reason
from curation.tar_walk import IMAGE_EXTENSIONS, count_keys, samples_of
from curation.units import Unit, sidecar_path
from shards.storage import Storage
from shards.tar import TarSample
from shards.window import Part


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
    if unit.start is None or unit.stop is None:
        buffer = storage.view(unit.path)
        view = Part(buffer, 0, buffer.size)
    else:
        view = Part(storage.view_range(unit.path, unit.start, unit.stop), unit.start, unit.size)
    raw = Raw()
    samples, damage = samples_of(view, unit.start or 0, unit.stop)
    before = _before(storage, unit)
    total, rest_damage = before + Counter(sample.key for sample in samples), None
    if unit.heads_file and unit.stop is not None and unit.stop < unit.size and profile.input.format == "img2dataset":
        rest, rest_damage = count_keys(storage, unit.path, unit.size, unit.stop, None)
        total += rest
    if damage:
        raw.warnings.append(f"{unit.path}: {damage}; the samples before it were read")
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


def _before(storage: Storage, unit: Unit) -> Counter[str]:
    """How often keys stand before the unit's range: the range's own keys at least."""
    if not unit.start:
        return Counter()
    if unit.earlier is not None:
        return Counter(unit.earlier)
    return count_keys(storage, unit.path, unit.size, 0, unit.start)[0]


def _sidecar(profile: Profile, storage: Storage, unit: Unit, raw: Raw, held: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of img2dataset's Parquet beside the tar, failed downloads included, each with its key as text.

    held: keys of the tar that are known here, those of the range at least.
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
    width = unit.key_width if unit.key_width is not None else len(next(iter(held), ""))
    for row in rows:
        row["key"] = str(row["key"]).zfill(width) if isinstance(row["key"], int) else str(row["key"])
    if held and rows and not _any_listed(storage, unit, held, {row["key"] for row in rows}):
        raise SourceError(f"{path}: not one of its keys is in {unit.path}: put the Parquet of this tar beside it")
    return rows


def _any_listed(storage: Storage, unit: Unit, held: Mapping[str, int], listed: set[str]) -> bool:
    """Whether the side-car lists any key of the tar from its beginning to the end of the range."""
    if not held.keys().isdisjoint(listed):
        return True
    # A range without one listed key, in a file that may well have some: worth a walk.
    return bool(unit.start) and not count_keys(storage, unit.path, unit.size, 0, unit.start)[0].keys().isdisjoint(
        listed
    )


def _complete(profile: Profile, sample: TarSample) -> bool:
    return _image_part(profile, sample) is not None and (profile.columns.caption or "txt") in sample.parts


def _image_part(profile: Profile, sample: TarSample) -> str | None:
    if profile.columns.image is not None:
        return profile.columns.image if profile.columns.image in sample.parts else None
    return next((extension for extension in IMAGE_EXTENSIONS if extension in sample.parts), None)


def _add_sample(
    raw: Raw,
    profile: Profile,
    view: Part,
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
