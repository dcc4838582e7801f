"""What is checked of one unit of a curation run: its manifest, ledger part, shard, index and review samples.

The one decision behind this module: a run's layout, and the columns `key`, `reason` and `caption` of its ledgers, are
read as data, so no code of the curation is needed. A unit's files are compared with its manifest only if that is as it
was written, and nothing whose hash is wrong is handed to a Parquet reader.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from shards.check_files import (
    Checked,
    Count,
    Described,
    Fault,
    File,
    Hash,
    Lines,
    compare_index,
    compare_sizes,
    explained,
    first_line,
    look_into,
    reading,
)
from shards.index import SUFFIX
from shards.storage import Storage, StorageError

COLUMNS = ("key", "reason", "caption")


class Files(Described):
    """The files of a unit; no shard and no index where nothing was kept."""

    ledger: File
    samples: File
    shard: File | None
    index: File | None


class Input(Described):
    """What a unit was read from. range: begin and end of its part, None and None for a whole file."""

    path: str
    range: list[int | None]


class UnitManifest(Described):
    """What is compared of a unit's manifest."""

    unit_id: Hash
    input: Input
    profile: str
    score_fp: str
    decision_fp: str
    listed: Count
    seen: Count
    kept: Count
    reasons: dict[str, Count]
    failed: dict[str, Count]
    failed_alone: dict[str, Count]
    scored: dict[str, Count]
    files: Files

    @property
    def short(self) -> str:
        return self.unit_id[:12]


@dataclass(frozen=True)
class UnitTask:
    """A unit: `name` is its id's first 12 digits, `path` is where its manifest is, `text` is that of a compacted one.

    sizes: bytes of the unit's files as listed, by path. fast: look at sizes only.
    """

    storage: Storage
    name: str
    path: str
    text: str | None
    sizes: Mapping[str, int]
    fast: bool


@dataclass
class CheckedUnit(Checked):
    """`unit`: None where its manifest cannot be trusted."""

    unit: UnitManifest | None = None


def unit_paths(short: str) -> tuple[str, ...]:
    """Where a unit's files lie: ledger, samples, shard, index."""
    tar = f"shards/{short}.tar"
    return f"ledger/{short}.parquet", f"samples/{short}.parquet", tar, tar + SUFFIX


def check_unit(task: UnitTask) -> CheckedUnit:
    """Checks a unit; never raises for what is damaged."""
    done = CheckedUnit(task.name)
    unit = _unit_manifest(done, task)
    if unit is None:
        return done
    done.unit = unit
    files = [file for file in (unit.files.ledger, unit.files.samples, unit.files.shard, unit.files.index) if file]
    known = compare_sizes(done, task.sizes, {file.path: file.bytes for file in files})
    done.samples, done.rows = unit.kept, unit.listed
    if task.fast:
        return done
    captions: dict[str, str | None] | None = None
    if unit.files.ledger.path in known:
        with reading(done, task.storage, unit.files.ledger) as buffer:
            if buffer is not None and not any(fault.path == unit.files.ledger.path for fault in done.faults):
                captions = _kept_captions(done, buffer, unit)
    if unit.files.samples.path in known:
        with reading(done, task.storage, unit.files.samples):
            pass
    if unit.files.shard and unit.files.index and unit.files.shard.path in known:
        with reading(done, task.storage, unit.files.shard) as buffer:
            if buffer is not None:
                offsets = look_into(done, buffer, unit.files.shard.path, unit.kept, captions)
                if offsets is not None and unit.files.index.path in known:
                    compare_index(done, task.storage, unit.files.index.path, offsets)
    if unit.files.index and unit.files.index.path in known:
        with reading(done, task.storage, unit.files.index):
            pass
    return done


def _unit_manifest(done: CheckedUnit, task: UnitTask) -> UnitManifest | None:
    """The unit's manifest if it is what was written; its files cannot be judged by another."""

    def refuse(what: str) -> None:
        unit = "" if task.text is None else f"unit {task.name}: "
        done.faults.append(Fault(task.path, f"{unit}{what}; the unit's files were not compared"))

    try:
        text = task.storage.read(task.path) if task.text is None else task.text.encode()
        record: dict[str, Any] = json.loads(text)
        # The hash is of the text as it was before the hash was appended.
        noted = str(record["sha256"])
        last = f', "sha256": "{noted}"}}'.encode()
        before = text.removesuffix(last) + b"}"
        if not text.endswith(last) or hashlib.sha256(before).hexdigest() != noted:
            refuse("not as it was written: its own sha256 differs")
            return None
        unit = UnitManifest.model_validate(record)
    except StorageError as error:
        refuse(explained(error))
        return None
    except ValidationError as error:
        first = error.errors()[0]
        refuse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        refuse(f"no unit manifest: {first_line(error)}")
        return None
    files = unit.files
    paths = files.ledger.path, files.samples.path, files.shard and files.shard.path, files.index and files.index.path
    expected = unit_paths(unit.short)
    if unit.short != task.name:
        refuse(f"holds the manifest of the unit {unit.short}")
        return None
    if paths != (expected if unit.kept else (*expected[:2], None, None)):
        refuse("names other files than a unit's")
        return None
    if unit.kept + sum(unit.reasons.values()) != unit.listed:
        done.faults.append(Fault(task.path, f"kept and reasons do not add up to the {unit.listed:,} samples listed"))
    fetch = sum(count for reason, count in unit.reasons.items() if reason.startswith("fetch:"))
    if unit.seen != unit.listed - fetch:
        done.faults.append(
            Fault(task.path, f"seen is {unit.seen:,}, listed less not fetched is {unit.listed - fetch:,}")
        )
    return unit


def _kept_captions(done: CheckedUnit, buffer: pa.Buffer, unit: UnitManifest) -> dict[str, str | None] | None:
    """Captions of the kept rows by key, in order, after the ledger was compared with its unit's manifest."""
    path = unit.files.ledger.path
    lines = Lines(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(buffer))
        lacking = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if lacking:
            done.faults.append(Fault(path, f"has no column {lacking[0]!r}"))
            return None
        table = file.read(columns=list(COLUMNS))
        keys, reasons = table.column("key").to_pylist(), table.column("reason").to_pylist()
        kept = table.filter(pc.is_null(table.column("reason")))
        captions = dict(zip(kept.column("key").to_pylist(), kept.column("caption").to_pylist(), strict=True))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        done.faults.append(Fault(path, f"no ledger: {first_line(error)}"))
        return None
    done.rows = len(keys)
    if len(keys) != unit.listed:
        lines.add("rows", f"{len(keys):,} rows, the unit's manifest lists {unit.listed:,}")
    for row, key in enumerate(keys):
        # The unit's id begins every key, and no two units share it: so keys are unique in the data set.
        if key != f"{unit.short}-{row:06d}":
            lines.add("key", f"row {row} has the key {key!r}, not {unit.short}-{row:06d}")
    counts = Counter(reasons)
    if counts[None] != unit.kept:
        lines.add("kept", f"{counts[None]:,} rows are kept, the unit's manifest says {unit.kept:,}")
    del counts[None]
    for reason in sorted(map(str, counts.keys() | unit.reasons.keys())):
        if counts[reason] != unit.reasons.get(reason, 0):
            told = f"{counts[reason]:,} rows, the unit's manifest says {unit.reasons.get(reason, 0):,}"
            lines.add("reason", f"reason {reason!r}: {told}")
    done.faults += lines.faults()
    return captions
