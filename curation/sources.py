"""Reads one unit of raw pairs: img2dataset tars with their Parquet, plain WebDataset tars, Parquet with image bytes.

The one decision: a reader never drops and never raises for a sample. Whatever the input holds becomes a row, with a
problem where it cannot be used; only damage that hides how many samples there were is a warning of the unit.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.profile import Profile
from curation.units import Unit, sidecar_path, tar_samples
from shards.storage import Storage
from shards.tar import Member, TarSample

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
    # Names of the columns where a schema says so (Parquet); None where each sample brings its own (tars).
    schema: frozenset[str] | None = None

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
    rows = _records(_table(storage, path), path, raw.warnings)
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
    raw = Raw(schema=frozenset(table.column_names))
    captions = table.column(caption).to_pylist()
    others = _records(table.drop_columns([caption, image]), unit.path, raw.warnings)
    used: set[Any] = set()
    if key is not None and unit.start:  # a key that an earlier range of the file had
        used = set(_table(storage, unit.path, 0, unit.start, [key]).column(key).to_pylist())
    for index, (text, columns) in enumerate(zip(captions, others, strict=True)):
        scalar = images[index]
        value = columns[key] if key is not None else None
        name = str((unit.start or 0) + index) if value is None else str(value)
        problem = "unreadable:duplicate_key" if value is not None and value in used else None
        used.add(value)
        if columns.get("status", "success") not in ("success", None):
            problem = f"fetch:{fetch_reason(columns.get('error_message'))}"
        words = text if text is None or isinstance(text, bytes | str) else str(text)
        raw.add(name, memoryview(scalar.as_buffer()).cast("B") if scalar.is_valid else None, words, columns, problem)
    return raw


def _table(
    storage: Storage, path: str, start: int | None = None, stop: int | None = None, columns: list[str] | None = None
) -> pa.Table:
    """Rows [start, stop) of a Parquet file; a range reads the row groups that hold it piece by piece."""
    try:
        with storage.open_input(path) as source, pq.ParquetFile(source) as file:
            if start is None or stop is None:
                return _plain(file.read(columns))
            first, groups = 0, list[int]()
            skip = start
            for index in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                if first < stop and first + rows > start:
                    skip = skip if groups else start - first
                    groups.append(index)
                first += rows
            wanted, kept = stop - start, list[pa.RecordBatch]()
            for batch in file.iter_batches(1024, row_groups=groups, columns=columns):
                piece = batch.slice(min(skip, len(batch)), wanted)
                skip, wanted = skip - min(skip, len(batch)), wanted - len(piece)
                kept.append(piece)
                if wanted <= 0:
                    break
            return _plain(pa.Table.from_batches(kept))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        line = str(error).splitlines()[0]
        raise SourceError(f"{path}: not a readable Parquet file ({line}): fetch or write it again") from error


def _records(table: pa.Table, path: str, warnings: list[str]) -> list[dict[str, Any]]:
    """Rows as dicts. A column with values that Python cannot hold (a date in the year 300,000) is given as numbers."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(column.to_pylist())
        except (OverflowError, ValueError, pa.ArrowException) as error:
            warnings.append(f"{path}: column {name!r} cannot be read as it is ({str(error).splitlines()[0]})")
            try:
                columns.append(column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist())
            except (pa.ArrowException, ValueError):
                columns.append([None] * len(column))
    if not columns:
        return [{} for _ in range(len(table))]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


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
    kept = {name: value for name, value in columns.items() if name not in skip and value is not None}
    return json.dumps(_jsonable(kept), ensure_ascii=False, separators=(",", ":"), default=str)


def _jsonable(value: Any, depth: int = 0) -> Any:
    """The value as strict JSON can hold it; nothing that a source nests deeper than 32 levels."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict | list) and depth >= 32:
        return "nested too deeply"
    if isinstance(value, dict):
        return {_jsonable(str(key)): _jsonable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item, depth + 1) for item in value]
    return value
