"""The ledger: one row for every input sample, and the decision as a pure function of its scores.

`decide` is the only place where a reason is made, for a running unit as for a ledger read years later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.base import Filter

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

SCHEMA_VERSION = "1"
BASE = pa.schema(
    [
        ("key", pa.string()),  # <unit id, 12 digits>-<row, 6 digits>: unique in the data set, without a dot
        ("source_key", pa.large_string()),
        ("unit_id", pa.string()),
        ("row", pa.int32()),  # within the unit
        ("url", pa.large_string()),
        ("caption_raw", pa.large_string()),
        ("caption", pa.large_string()),  # cleaned; null where there was none to clean
        ("width", pa.int32()),  # of the original image as displayed, pixels
        ("height", pa.int32()),
        ("format", pa.string()),  # jpg, png, webp; null where unreadable
        ("source", pa.large_string()),  # JSON of the source's other columns
    ]
)
VERDICT = pa.schema([("failed", pa.list_(pa.string())), ("reason", pa.string())])


def schema(filters: Mapping[str, Filter]) -> pa.Schema:
    """The ledger's columns for these filters; `schema_version` is in the metadata."""
    scores = [
        pa.field(f"{label}_{score}", kind) for label, rule in filters.items() for score, kind in rule.scores.items()
    ]
    return pa.schema([*BASE, *scores, *VERDICT], metadata={"schema_version": SCHEMA_VERSION})


def scores_of(table: pa.Table, label: str, rule: Filter) -> pa.Table:
    """A filter's scores under their unprefixed names, as `Filter.keep` wants them."""
    return pa.table({score: table.column(f"{label}_{score}") for score in rule.scores})


def own_scores(names: Iterable[str], label: str, labels: Iterable[str]) -> dict[str, str]:
    """Which of these columns are scores of a filter: column -> unprefixed name, in their order.

    Where a label begins with another one, the longer label has them.
    """
    longer = tuple(f"{other}_" for other in labels if other.startswith(f"{label}_"))
    others = {*BASE.names, *VERDICT.names, "thumbnail"}
    return {
        name: name.removeprefix(f"{label}_")
        for name in names
        if name.startswith(f"{label}_") and not name.startswith(longer) and name not in others
    }


@dataclass(frozen=True)
class Decision:
    """Per row: the labels it failed, in order; the reason (null: kept or unscored); whether a score is missing."""

    failed: pa.ListArray
    reason: pa.StringArray
    unscored: pa.BooleanArray


def decide(table: pa.Table, filters: Mapping[str, Filter], problems: pa.Array) -> Decision:
    """Decides every row from its scores.

    problems: string per row, null where the sample can be judged; a row with a problem keeps it as its reason and
    fails no filter. A score that could not be computed fails its filter with reason `<label>:error`. A sample that
    passed everything before a filter that has no score for it is unscored: neither kept nor dropped.
    """
    rows = len(table)
    usable = np.asarray(pc.is_null(problems), dtype=bool)
    failures = np.zeros((rows, len(filters)), dtype=bool)
    unscored = np.zeros(rows, dtype=bool)
    reason = np.full(rows, None, dtype=object)
    open_ = usable.copy()
    for index, (label, rule) in enumerate(filters.items()):
        dropped, broken, null = verdicts(rule, scores_of(table, label, rule))
        failures[:, index] = usable & (dropped | broken)
        reason[open_ & dropped] = label
        reason[open_ & broken] = f"{label}:error"
        unscored |= open_ & null & ~broken
        open_ &= ~failures[:, index]
    reason[~usable] = np.array(_flat(problems).to_pylist(), dtype=object)[~usable]
    unscored &= open_
    offsets = np.concatenate([[0], np.cumsum(failures.sum(axis=1))]).astype(np.int32)
    names = pa.array(list(filters), pa.string())
    failed = pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(np.nonzero(failures)[1])))
    return Decision(failed, pa.array(reason, pa.string()), pa.array(unscored))


def verdicts(rule: Filter, scores: pa.Table) -> tuple[Mask, Mask, Mask]:
    """Rows that a filter drops, rows whose score could not be computed, and all rows without a verdict."""
    verdict = _flat(rule.keep(scores)).cast(pa.bool_())  # a plug-in's empty list has no type
    null = np.asarray(pc.is_null(verdict), dtype=bool)
    return ~np.asarray(pc.fill_null(verdict, True), dtype=bool), null & _has_error(scores), null


def settle(rows: pa.Table, filters: Mapping[str, Filter], problems: pa.Array) -> pa.Table:
    """The ledger of a unit: rows with scores get their verdicts, for good."""
    columns = schema(filters)
    for score in columns.names[len(BASE) : -len(VERDICT)]:
        if score not in rows.column_names:  # of a pixel filter that no sample of the unit reached
            rows = rows.append_column(score, pa.nulls(len(rows), columns.field(score).type))
    return with_verdicts(rows, filters, problems).select(columns.names).cast(columns)


def with_verdicts(rows: pa.Table, filters: Mapping[str, Filter], problems: pa.Array) -> pa.Table:
    """Rows with `failed` and `reason`. rows: the filters' scores at least.

    A sample that a filter left without a score, and without a word why, fails that filter as `<label>:error`.
    """
    decision = decide(rows, filters, problems)
    reasons = decision.reason
    silent = np.flatnonzero(np.asarray(decision.unscored, dtype=bool))
    if len(silent):
        words = reasons.to_pylist()
        for row in silent:
            words[row] = _silent_filter(filters, rows.slice(int(row), 1))
        reasons = pa.array(words, pa.string())
    return rows.append_column("failed", decision.failed).append_column("reason", reasons)


def _silent_filter(filters: Mapping[str, Filter], row: pa.Table) -> str:
    for label, rule in filters.items():
        if not rule.keep(scores_of(row, label, rule))[0].is_valid:
            return f"{label}:error"
    raise AssertionError("an unscored row has a filter without a verdict")


def problems_of(table: pa.Table, filters: Mapping[str, Filter]) -> pa.StringArray:
    """The problems with which a ledger's rows were decided: null where filters judged the sample."""
    reasons = _flat(table.column("reason"))
    # A mapper may be called like a filter: what a filter drops has failed one, but where it had no score to fail.
    failed = pc.greater(pc.list_value_length(_flat(table.column("failed"))), 0)
    errors = pc.is_in(reasons, value_set=pa.array([f"{label}:error" for label in filters], pa.string()))
    judged = pc.or_(pc.is_null(reasons), pc.or_(failed, errors))
    return pc.if_else(judged, pa.scalar(None, pa.string()), reasons)


def _flat(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _has_error(scores: pa.Table) -> Mask:
    found = np.zeros(len(scores), dtype=bool)
    for name in scores.column_names:
        if name.endswith("_error"):
            found |= np.asarray(pc.is_valid(scores.column(name)), dtype=bool)
    return found


def to_parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a ledger part: the same for the same rows and library versions."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_statistics=True, store_schema=True)
    return sink.getvalue()
