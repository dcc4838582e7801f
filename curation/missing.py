"""Scores that a run did not make: pixel filters on the samples that only another decision lets reach them.

The one decision: they lie beside the run's ledger, in `scores/<unit>.parquet`, and add up: what was scored once is
there for every later decision. The ledger itself never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import ledger
from curation.opened import LedgerError, ledger_path, read_unit_ledger
from curation.profile import Fingerprints, Profile
from curation.raw import SourceError
from curation.redecide import decide_again
from curation.sources import read_unit
from curation.unit import Image, Judged
from curation.units import Unit
from shards.storage import NotFound, Storage, StorageError

FOLDER = "scores"
# The problem of a sample that is not looked at: it has its scores, or will not reach a pixel filter.
_SETTLED = "settled"


def score_path(unit: Unit) -> str:
    return f"{FOLDER}/{unit.short}.parquet"


def read_scores(
    run: Storage, unit: Unit, profile: Profile, prints: Fingerprints, ledger_sha256: str | None = None
) -> dict[str, pa.Table]:
    """By pixel filter, the scores made later: `row` and the filter's ledger columns. Empty where there are none.

    Scores of another configuration, or for a ledger that was made again since, count as none. ledger_sha256: of the
    unit's ledger part; None: it is looked up. Raises `LedgerError` where the file is damaged.
    """
    path = score_path(unit)
    try:
        with run.open_input(path) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            metadata = file.schema_arrow.metadata or {}
            wanted = {b"score_fp": prints.score, b"ledger_sha256": ledger_sha256 or _ledger_sha256(run, unit)}
            if any(metadata.get(name) != value.encode() for name, value in wanted.items()):
                return {}
            table = file.read()
    except NotFound:
        return {}
    except StorageError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise LedgerError(
            f"{run.uri}/{path}: damaged ({reason}): delete it, and rescore with --score-missing"
        ) from error
    return {
        label: table.filter(table.column(_seen(label))).select(["row", *_columns(profile, label)])
        for label in profile.pixel
    }


def _ledger_sha256(run: Storage, unit: Unit) -> str:
    """Of the ledger part as it stands: its rows are what the scores are of."""
    return hashlib.sha256(run.view(ledger_path(unit))).hexdigest()


def _seen(label: str) -> str:
    """The column that tells which rows a filter has seen."""
    return f"{label}:seen"


def _columns(profile: Profile, label: str) -> list[str]:
    return [f"{label}_{score}" for score in profile.filters[label].scores]


def judge_missing(
    profile: Profile,
    prints: Fingerprints,
    source: Storage,
    run: Storage,
    unit: Unit,
    order: Sequence[str],
) -> Judged:
    """The unit as it stands before the pixel filters, open and with images where a score is missing.

    order: the run's own order of its filters.
    """
    judged = Judged(unit, pa.table({}), pa.nulls(0, pa.string()), [])
    with judged.timed("ledger"):
        rows = read_unit_ledger(run, profile.name, unit)
        again = decide_again(rows, profile, order, read_scores(run, unit, profile, prints))
        fields = [field.name for field in ledger.schema(profile.cheap) if field.name not in ledger.VERDICT.names]
        judged.rows = rows.select(fields).cast(pa.schema([rows.schema.field(name) for name in fields]))
        judged.problems = pc.if_else(pa.array(again.unscored), pa.scalar(None, pa.string()), pa.scalar(_SETTLED))
    with judged.timed("read"):
        wanted = np.flatnonzero(again.unscored)
        images = raw_images(profile, source, unit, rows.column("source_key").to_pylist())
        judged.images = [None] * len(rows)
        for row in wanted:
            judged.images[row] = images[row]
    return judged


def raw_images(profile: Profile, source: Storage, unit: Unit, source_keys: Sequence[str | None]) -> list[Image]:
    """A unit's images, row by row, from the raw input. Raises `SourceError` where that is not what the run read."""
    # The size is what a run knows its files by; the same keys may stand there with other images.
    raw = read_unit(profile, source, unit) if source.size(unit.path) == unit.size else None
    if raw is None or raw.keys != list(source_keys):
        raise SourceError(
            f"{source.uri}/{unit.path}: holds other samples than when the run read it: bring the file back, or run "
            "again with --replace"
        )
    return raw.images


def commit_scores(profile: Profile, prints: Fingerprints, judged: Judged, run: Storage) -> int:
    """Writes the scores of a unit beside those that were made before; gives how many samples were scored."""
    columns: dict[str, pa.Array] = {"row": judged.rows.column("row").combine_chunks()}
    done = dict(profile.cheap)
    any_seen = np.zeros(len(judged.rows), dtype=bool)
    before = read_scores(run, judged.unit, profile, prints)
    for label, rule in profile.pixel.items():
        seen = np.asarray(pc.is_null(ledger.decide(judged.rows, done, judged.problems).reason), dtype=bool)
        values = {name: judged.rows.column(name).combine_chunks() for name in _columns(profile, label)}
        if label in before:
            places = np.asarray(before[label].column("row"))
            earlier = np.zeros(len(seen), dtype=bool)
            earlier[places] = True
            for name, column in values.items():
                values[name] = pc.replace_with_mask(
                    column, pa.array(earlier), before[label].column(name).combine_chunks()
                )
            seen |= earlier
        columns |= {_seen(label): pa.array(seen), **values}
        any_seen |= seen
        done[label] = rule
    table = pa.table(columns).filter(pa.array(any_seen))
    about = {"score_fp": prints.score, "ledger_sha256": _ledger_sha256(run, judged.unit)}
    table = table.replace_schema_metadata({"schema_version": ledger.SCHEMA_VERSION, **about})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    run.write(score_path(judged.unit), sink.getvalue(), durable=True)
    return len(judged.rows) - int(pc.sum(pc.is_valid(judged.problems)).as_py() or 0)
