"""Keys, URLs and reasons of a decision as Parquet: what can be shared without the data.

The one decision: rows come in the order of the input, whatever was compacted when, so the same decision always gives
the same bytes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import ledger
from curation.opened import Opened, read_ledger
from curation.plan import RunError
from curation.progress import Progress
from shards.storage import Storage, StorageError

Keys = Literal["kept", "dropped", "all"]
# Rows of a part: about 100 MB while it is gathered.
ROWS_A_PART = 500_000
# Written last, and says what the parts are. Readers of a folder of Parquet pass over names that begin with _.
END = "_export.json"
_COLUMNS = ("key", "source_key", "url", "failed", "reason")
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("input", pa.string()),
        *((name, ledger.BASE.field(name).type) for name in ("source_key", "url")),
        *((field.name, field.type) for field in ledger.VERDICT),
    ]
)
_PART = re.compile(r"part-(\d{5,})\.parquet\Z")


@dataclass(frozen=True)
class Exported:
    folder: str
    rows: int
    parts: int


def export(opened: Opened, keys: Keys, folder: str | None = None, rows_a_part: int = ROWS_A_PART) -> Exported:
    """Writes `part-<n>.parquet` with a row a sample: `key`, `input`, `source_key`, `url`, `failed`, `reason`.

    `input` is the sample's file below the input. keys: which samples. folder: where to; None: `export/<keys>/` of the
    run or decision. Raises `RunError` and `StorageError` with one line each.
    """
    started = time.time()
    output = Storage.open(folder or opened.output.where(f"export/{keys}"))
    output.must_answer()
    _must_be_free(output)
    output.delete(END)
    rows = parts = 0
    for parts, table in enumerate(_parts(opened, keys, rows_a_part), 1):
        output.write(f"part-{parts - 1:05d}.parquet", ledger.to_parquet(table), durable=True)
        rows += len(table)
    for entry in output.list("", ".parquet"):  # of an earlier, larger export
        match = _PART.match(entry.path)
        if match and int(match[1]) >= parts:
            output.delete(entry.path)
    if folder is None:  # nobody else writes below it
        output.sweep_temporary(time.time() - started)
    about = {
        "profile": opened.name,
        "keys": keys,
        "decision_fp": opened.decision,
        "score_fp": opened.record["score_fp"],
        "thresholds": opened.record["thresholds"],
        "complete": opened.complete,
        "rows": rows,
        "parts": parts,
    }
    output.write(END, json.dumps(about, ensure_ascii=False, indent=1).encode(), durable=True)
    return Exported(output.uri, rows, parts)


def _must_be_free(output: Storage) -> None:
    """Raises `RunError` where a file that a part would take the place of is no export: a URL list, say."""
    for entry in output.list("", ".parquet"):
        if not _PART.match(entry.path):
            continue
        try:
            with output.open_input(entry.path) as file:
                ours = pq.read_schema(file).names == _SCHEMA.names
        except StorageError:
            raise
        except (OSError, pa.ArrowException):
            ours = False
        if not ours:
            raise RunError(
                f"{output.where(entry.path)}: is no part of an export, and would be lost: give another --out"
            )


def _parts(opened: Opened, keys: Keys, rows_a_part: int) -> Iterator[pa.Table]:
    """At least one: where there are no rows, it tells the columns."""
    waiting, rows, empty = [_SCHEMA.empty_table()], 0, True
    for table in _units(opened, keys):
        waiting.append(table)
        rows += len(table)
        while rows >= rows_a_part:
            gathered = pa.concat_tables(waiting)
            yield gathered.slice(0, rows_a_part)
            waiting, rows, empty = [gathered.slice(rows_a_part)], rows - rows_a_part, False
    if rows or empty:
        yield pa.concat_tables(waiting)


def _units(opened: Opened, keys: Keys) -> Iterator[pa.Table]:
    units = sorted((_about(manifest) for manifest in opened.units()), key=lambda about: about["order"])
    with Progress(len(units), f"{opened.name}: export", kept="exported") as progress:
        for about in units:
            table = read_ledger(opened.output, about, _COLUMNS)
            listed = len(table)
            if keys != "all":
                kept = pc.is_null(table.column("reason"))
                table = table.filter(kept if keys == "kept" else pc.invert(kept))
            table = table.add_column(1, "input", pa.repeat(about["input"], len(table)))
            progress.unit(listed, listed, len(table), False)
            yield table.select(_SCHEMA.names).cast(_SCHEMA)


def _about(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the export needs of a unit: its whole manifest is a hundred times as large."""
    path, (start, _) = manifest["input"]["path"], manifest["input"]["range"]
    about: dict[str, Any] = {name: manifest[name] for name in ("unit_id", "profile", "run_files") if name in manifest}
    return {**about, "files": {"ledger": manifest["files"]["ledger"]}, "input": path, "order": (path, start or 0)}
