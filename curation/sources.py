"""Reads one unit of raw pairs: img2dataset tars with their Parquet, plain WebDataset tars, Parquet with image bytes.

The one decision: a reader never drops and never raises for a sample. Whatever the input holds becomes a row, with a
problem where it cannot be used; only damage that hides how many samples there were is a warning of the unit.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.profile import Profile
from curation.units import Unit, sidecar_path, tar_samples
from shards.storage import Storage
from shards.tar import TarSample

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "jxl", "svg", "ico", "img", "image", "bin"),
)


class SourceError(Exception):
    """A unit's input cannot be read at all: one line with the file, what is wrong and what to do."""


@dataclass
class Raw:
    """n samples as the source has them; every list has n entries."""

    keys: list[str] = field(default_factory=list)
    images: list[memoryview | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    # "fetch:<why>" or "unreadable:<why>" where the sample cannot be used.
    problems: list[str | None] = field(default_factory=list)
    # The source's other columns.
    columns: list[Mapping[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(
        self,
        key: str,
        image: memoryview | None,
        caption: bytes | str | None,
        columns: Mapping[str, Any],
        problem: str | None,
    ) -> None:
        if problem is None and image is None:
            problem = "unreadable:no_image"
        text, caption_problem = _text(caption)
        self.keys.append(key)
        self.images.append(image)
        self.captions.append(text)
        self.columns.append(columns)
        self.problems.append(problem or caption_problem)


def read_unit(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    """Raises `SourceError` or `StorageError` where the file as a whole cannot be read."""
    if profile.input.format == "parquet":
        return _read_parquet(profile, storage, unit)
    return _read_tar(profile, storage, unit)


def _text(caption: bytes | str | None) -> tuple[str | None, str | None]:
    """A caption as text, and what is wrong with it. Bytes that are no UTF-8 are shown with U+FFFD."""
    if caption is None:
        return None, "unreadable:no_caption"
    if isinstance(caption, bytes):
        try:
            return caption.decode(), None
        except UnicodeDecodeError:
            return caption.decode(errors="replace"), "unreadable:caption_encoding"
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return caption.encode(errors="replace").decode(), "unreadable:caption_encoding"
    return caption, None


def _read_tar(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    buffer = storage.view(unit.path)
    raw = Raw()
    samples, damage = tar_samples(buffer, unit.start or 0, unit.stop)
    if damage:
        raw.warnings.append(f"{unit.path}: {damage}; the samples before it were read")
    view = memoryview(buffer).cast("B")
    sidecar = _sidecar(profile, storage, unit, raw)
    by_key: dict[str, list[TarSample]] = defaultdict(list)
    for sample in samples:
        by_key[sample.key].append(sample)
    used: set[str] = set()
    if sidecar is not None:
        elsewhere = _keys_elsewhere(buffer, unit) if unit.start is not None else set()
        for row in sidecar:
            key = str(row.get("key"))
            status = row.get("status", "success")
            found = by_key[key].pop(0) if by_key.get(key) else None
            if found is not None:
                _add_sample(raw, profile, view, found, row, "unreadable:duplicate_key" if key in used else None)
            elif not unit.heads_file or (key in elsewhere and key not in used):
                continue
            elif status != "success":
                raw.add(
                    key, None, _caption_column(profile, row), row, f"fetch:{fetch_reason(row.get('error_message'))}"
                )
            else:
                why = "duplicate_key" if key in used else "truncated_tar" if damage else "missing"
                raw.add(key, None, _caption_column(profile, row), row, f"unreadable:{why}")
            used.add(key)
    left = {id(sample) for group_ in by_key.values() for sample in group_}
    for index, sample in enumerate(samples):
        if id(sample) not in left:
            continue
        problem = "unreadable:duplicate_key" if sample.key in used else None
        if damage and index == len(samples) - 1 and not problem and not _complete(profile, sample):
            problem = "unreadable:truncated_tar"
        _add_sample(raw, profile, view, sample, None, problem)
        used.add(sample.key)
    return raw


def _keys_elsewhere(buffer: pa.Buffer, unit: Unit) -> set[str]:
    """Keys of the file's other ranges: only the first range lists what the side-car has and the whole tar has not."""
    if not unit.heads_file or unit.stop is None:
        return set()
    return {sample.key for sample in tar_samples(buffer, unit.stop)[0]}


def _sidecar(profile: Profile, storage: Storage, unit: Unit, raw: Raw) -> list[dict[str, Any]] | None:
    """Rows of img2dataset's Parquet beside the tar, failed downloads included; None where there is none."""
    if profile.input.format != "img2dataset":
        return None
    path = sidecar_path(unit.path)
    if not storage.exists(path):
        raw.warnings.append(f"{unit.path}: no {path} beside it, so its failed downloads are unknown")
        return None
    rows: list[dict[str, Any]] = _table(storage, path).to_pylist()
    if rows and "key" not in rows[0]:
        raise SourceError(f"{path}: no column 'key': is this a Parquet file that img2dataset wrote?")
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


def _read_parquet(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    table = _table(storage, unit.path, unit.start, unit.stop)
    names = profile.columns
    caption = _column_name(table, unit, "caption", names.caption, ("caption", "text", "TEXT"))
    image = _column_name(table, unit, "image", names.image, ("image", "jpg", "bytes", "image_bytes"))
    key = names.key or ("key" if "key" in table.column_names else None)
    if key is not None and key not in table.column_names:
        raise SourceError(_no_column(table, unit, "key", key))
    images = table.column(image).combine_chunks()
    if pa.types.is_struct(images.type):  # how the datasets library stores images: {bytes, path}
        images = images.field("bytes") if images.type.get_field_index("bytes") >= 0 else images
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise SourceError(f"{unit.path}: column {image!r} holds {images.type}, not image bytes: set columns.image")
    raw = Raw()
    captions = table.column(caption).to_pylist()
    others = table.drop_columns([caption, image]).to_pylist()
    used: set[str] = set()
    for index, (text, columns) in enumerate(zip(captions, others, strict=True)):
        scalar = images[index]
        name = str(columns[key]) if key is not None else str((unit.start or 0) + index)
        problem = "unreadable:duplicate_key" if key is not None and name in used else None
        used.add(name)
        if columns.get("status", "success") not in ("success", None):
            problem = f"fetch:{fetch_reason(columns.get('error_message'))}"
        value = text if text is None or isinstance(text, bytes | str) else str(text)
        raw.add(name, memoryview(scalar.as_buffer()).cast("B") if scalar.is_valid else None, value, columns, problem)
    return raw


def _table(storage: Storage, path: str, start: int | None = None, stop: int | None = None) -> pa.Table:
    """Rows [start, stop) of a Parquet file; only the row groups that hold them are read."""
    try:
        with storage.open_input(path) as source, pq.ParquetFile(source) as file:
            if start is None or stop is None:
                return _plain(file.read())
            first, skip = 0, start
            groups: list[int] = []
            for index in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                if first < stop and first + rows > start:
                    if not groups:
                        skip = start - first
                    groups.append(index)
                first += rows
            return _plain(file.read_row_groups(groups).slice(skip, stop - start))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        line = str(error).splitlines()[0]
        raise SourceError(f"{path}: not a readable Parquet file ({line}): fetch or write it again") from error


def _plain(table: pa.Table) -> pa.Table:
    """String columns as binary where they hold bytes that are no UTF-8, so that one bad caption spoils only itself."""
    for index, column in enumerate(table.columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                table = table.set_column(index, table.column_names[index], column.cast(pa.large_binary()))
    return table


def _column_name(table: pa.Table, unit: Unit, role: str, given: str | None, usual: Iterable[str]) -> str:
    if given is not None:
        if given not in table.column_names:
            raise SourceError(_no_column(table, unit, role, given))
        return given
    found = next((name for name in usual if name in table.column_names), None)
    if found is None:
        raise SourceError(_no_column(table, unit, role, next(iter(usual))))
    return found


def _no_column(table: pa.Table, unit: Unit, role: str, name: str) -> str:
    return f"{unit.path}: no column {name!r} (it has: {', '.join(table.column_names)}): set columns.{role}"


_FETCH_REASONS = (
    (r"HTTP Error (\d{3})", r"http_\1"),
    (r"timed? ?out", "timeout"),
    (r"X-Robots-Tag", "opt_out"),
    (r"too small", "too_small"),
    (r"area too large", "too_large"),
    (r"aspect ratio", "aspect_ratio"),
    (r"decod|!buf\.empty|cannot identify", "decode"),
    (r"certificate|SSL", "tls"),
    (r"Name or service|getaddrinfo|resolve", "dns"),
    (r"refused|reset|unreachable|Remote end closed|IncompleteRead", "connection"),
)


def fetch_reason(message: Any) -> str:
    """A short word for a downloader's free-text message, so that failures can be counted."""
    text = str(message or "")
    for pattern, reason in _FETCH_REASONS:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return match.expand(reason)
    return "other"


def source_json(columns: Mapping[str, Any], without: Iterable[str | None]) -> str:
    """The source's other columns as one line of JSON; nulls and what the ledger has anyway are left out."""
    skip = set(without)
    kept = {name: _jsonable(value) for name, value in columns.items() if name not in skip and value is not None}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"), default=str)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value
