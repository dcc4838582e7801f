"""Decides a unit again from its ledger rows: other thresholds, another order of the filters, no images.

The one decision: the result is what a fresh run would write. So a pixel filter's score is taken away from a sample that
no longer reaches the filter, and a sample that reaches it for the first time has none: it is unscored, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import ledger
from curation.counts import failures
from curation.ledger import Mask
from curation.profile import Profile
from filters.base import Filter

Places: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Again:
    """`table`: the rows with their new scores and verdicts. `unscored`: rows that a pixel filter has yet to see.

    Where any row is unscored, the verdicts of those rows mean nothing.
    """

    table: pa.Table
    unscored: Mask


def columns_of(filters: Mapping[str, Filter]) -> list[str]:
    """The ledger's columns that a decision reads."""
    scores = [f"{label}_{score}" for label, rule in filters.items() for score in rule.scores]
    return [*scores, *ledger.VERDICT.names]


def decide_again(
    rows: pa.Table, profile: Profile, order: Sequence[str], extra: Mapping[str, pa.Table] | None = None
) -> Again:
    """Decides ledger rows by a profile's thresholds and order.

    rows: `columns_of` at least, with the verdicts of the run; order: the run's own order of its filters. extra: by
    label, scores that pixel filters made later: `row`, the place in `rows`, and the filter's columns.
    """
    problems = ledger.problems_of(rows, profile.filters)
    scored = scored_before(rows, profile, order)
    rows = rows.drop_columns(ledger.VERDICT.names)
    for label, scores in (extra or {}).items():
        places = np.asarray(scores.column("row"))
        for score in profile.filters[label].scores:
            rows = _put(rows, f"{label}_{score}", places, scores.column(f"{label}_{score}"))
        scored[label][places] = True
    unscored = np.zeros(len(rows), dtype=bool)
    done = dict(profile.cheap)
    for label, rule in profile.pixel.items():
        reached = np.asarray(pc.is_null(ledger.decide(rows, done, problems).reason), dtype=bool)
        unscored |= reached & ~scored[label]
        for score in rule.scores:
            name = f"{label}_{score}"
            column = pc.if_else(pa.array(reached), rows.column(name), pa.scalar(None, rows.schema.field(name).type))
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
        done[label] = rule
    return Again(ledger.with_verdicts(rows, profile.filters, problems), unscored)


def scored_before(rows: pa.Table, profile: Profile, order: Sequence[str]) -> dict[str, Mask]:
    """By pixel filter: the samples that it has seen, as the run's verdicts tell: they had failed nothing before it."""
    usable = np.asarray(pc.is_null(ledger.problems_of(rows, profile.filters)), dtype=bool)
    fails = failures(order, rows)
    return {label: usable & ~fails[:, : list(order).index(label)].any(axis=1) for label in profile.pixel}


def _put(rows: pa.Table, name: str, places: Places, values: pa.ChunkedArray) -> pa.Table:
    """The table with `values` at some places of a column."""
    mask = np.zeros(len(rows), dtype=bool)
    mask[places] = True
    ordered = values.combine_chunks().take(pa.array(np.argsort(places, kind="stable")))
    column = pc.replace_with_mask(rows.column(name).combine_chunks(), pa.array(mask), ordered)
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
