"""Reads Parquet: pairs with image bytes in a column, and the side-cars of img2dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.profile import Profile
from curation.raw import Raw, SourceError, fetch_reason
from curation.units import Unit
from shards.storage import Storage, StorageError


def read_parquet(profile: Profile, storage: Storage, unit: Unit) -> Raw:
    table = read_table(storage, unit.path, unit.start, unit.stop)
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
    others = records(table.drop_columns([caption, image]), unit.path, raw.warnings)
    used: set[Any] = set()
    if key is not None and unit.start:  # a key that an earlier range of the file had
        used = set(read_table(storage, unit.path, 0, unit.start, [key]).column(key).to_pylist())
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


def read_table(
    storage: Storage,
    path: str,
    start: int | None = None,
    stop: int | None = None,
    columns: list[str] | None = None,
    buffer: int | None = None,
) -> pa.Table:
    """Rows [start, stop) of a Parquet file; a range reads the row groups that hold it piece by piece.

    buffer: bytes of a column that are read at once, for row groups of any size; None: a row group's whole columns.
    """
    streamed: dict[str, Any] = {} if buffer is None else {"pre_buffer": False, "buffer_size": buffer}
    try:
        with storage.open_input(path) as source, pq.ParquetFile(source, **streamed) as file:
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
                if len(piece) or not kept:  # an empty slice would hold its whole batch in memory; one tells the columns
                    kept.append(piece)
                if wanted <= 0:
                    break
            return _plain(pa.Table.from_batches(kept))
    except StorageError:  # an OSError too, and a line of its own
        raise
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        where = storage.where(path)
        raise SourceError(
            f"{where}: not a readable Parquet file ({_line(error)[:200]}): fetch or write it again"
        ) from error


def records(table: pa.Table, path: str, warnings: list[str]) -> list[dict[str, Any]]:
    """Rows as dicts. A column with values that Python cannot hold (a date in the year 300,000) is given as numbers."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(column.to_pylist())
        except (OverflowError, ValueError, KeyError, pa.ArrowException) as error:  # KeyError: an unknown time zone
            warnings.append(f"{path}: column {name!r} cannot be read as it is ({_line(error)})")
            try:
                columns.append(column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist())
            except (pa.ArrowException, ValueError):
                columns.append([None] * len(column))
    if not columns:
        return [{} for _ in range(len(table))]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
