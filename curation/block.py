"""A unit between processes: one Arrow table, because that is what Ray Data moves without copying."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.unit import Image, Judged, StepError
from curation.units import Unit

_IMAGE, _PROBLEM, _STATE, _ROWS = "_image", "_problem", "_state", "_n_rows"


def to_table(judged: Judged) -> pa.Table:
    """One row a sample; state of the unit as JSON in the first. Every unit's table of one step has the same schema."""
    state = {
        "unit": judged.unit.to_json(),
        "hits": judged.hits,
        "warnings": judged.warnings,
        "seconds": judged.seconds,
    }
    return with_state(judged, state)


def with_state(judged: Judged, state: Mapping[str, Any]) -> pa.Table:
    """The rows of a unit with its images and problems, and `state` in the first row."""
    rows = len(judged.rows)
    return (
        judged.rows.append_column(_IMAGE, pa.array(judged.images, pa.large_binary()))
        .append_column(_PROBLEM, judged.problems)
        .append_column(_ROWS, pa.array([rows] * rows, pa.int64()))
        .append_column(_STATE, pa.array([json.dumps(state)] + [None] * (rows - 1), pa.large_string()))
    )


def state_of(table: pa.Table) -> dict[str, Any]:
    """What `with_state` put into the first row."""
    state: dict[str, Any] = json.loads(table.column(_STATE)[0].as_py())
    return state


def from_table(table: pa.Table) -> Judged:
    """The unit again. Raises `StepError` where the table is not exactly one whole unit."""
    units = pc.unique(table.column("unit_id"))
    expected = table.column(_ROWS)[0].as_py()
    if len(units) != 1 or len(table) != expected:
        raise StepError(f"a block holds {len(table)} of {expected} rows of {len(units)} units: units must stay whole")
    state = state_of(table)
    images: list[Image] = []
    for chunk in table.column(_IMAGE).chunks:
        images += [memoryview(value.as_buffer()).cast("B") if value.is_valid else None for value in chunk]
    return Judged(
        Unit.from_json(state["unit"]),
        table.drop_columns([_IMAGE, _PROBLEM, _ROWS, _STATE]),
        table.column(_PROBLEM).combine_chunks(),
        images,
        state["hits"],
        state["warnings"],
        state["seconds"],
    )
