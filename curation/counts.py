"""The numbers of a unit that add up over units: reasons, failures and their overlap, histograms.

The one decision: they are made from the ledger table alone, so a unit that is decided anew counts as a fresh run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import ledger
from curation.ledger import Mask
from filters.base import Filter

BINS = 256


def count(filters: Mapping[str, Filter], table: pa.Table) -> dict[str, Any]:
    """The sums of a ledger table with verdicts.

    listed = fetch failures + seen; seen = unreadable + dropped by a mapper + dropped first per filter + kept.
    failed_together: samples that fail both of two filters, as `<label>+<label>` in the order of execution; what was
    dropped before its pixels were scored fails no pixel filter.
    """
    counted = pc.value_counts(_flat(table.column("reason"))).to_pylist()
    by_reason = {entry["values"]: entry["counts"] for entry in counted}
    kept = by_reason.pop(None, 0)
    fetch = sum(number for reason, number in by_reason.items() if reason.startswith("fetch:"))
    fails = failures(filters, table)
    alone = fails.sum(axis=1) == 1
    together = {
        f"{one}+{other}": int(np.count_nonzero(fails[:, first] & fails[:, second]))
        for (first, one), (second, other) in combinations(enumerate(filters), 2)
    }
    return {
        "listed": len(table),
        "seen": len(table) - fetch,
        "kept": kept,
        "reasons": dict(sorted(by_reason.items())),
        "failed": _by_label(filters, fails),
        "failed_alone": _by_label(filters, fails[alone]),
        "failed_together": {pair: number for pair, number in together.items() if number},
        "scored": {
            label: len(table) - ledger.scores_of(table, label, rule).column(0).null_count
            for label, rule in filters.items()
        },
        "histograms": _histograms(filters, table, fails),
    }


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def failures(filters: Iterable[str], table: pa.Table) -> Mask:
    """Rows by filters, in the order of these labels: which failed which."""
    lists, order = _flat(table.column("failed")), list(filters)
    fails = np.zeros((len(table), len(order)), dtype=bool)
    labels = pc.index_in(pc.list_flatten(lists), value_set=pa.array(order, pa.string()))
    fails[np.asarray(pc.list_parent_indices(lists)), np.asarray(labels)] = True
    return fails


def _by_label(filters: Mapping[str, Filter], fails: Mask) -> dict[str, int]:
    numbers = zip(filters, fails.sum(axis=0), strict=True)
    return {label: int(number) for label, number in sorted(numbers) if number}


def _histograms(filters: Mapping[str, Filter], table: pa.Table, fails: Mask) -> dict[str, dict[str, Any]]:
    """256 counts a numeric score between fixed edges (outliers in the end bins): `all` readable samples, and `others`,
    those that pass every other filter as far as those were scored."""
    usable = _usable(filters, table)
    number = fails.sum(axis=1)
    found = {}
    for index, (label, rule) in enumerate(filters.items()):
        passes = usable & (number == fails[:, index])
        for score, (low, high) in rule.bins.items():
            if score not in rule.scores:  # a score that this configuration of the filter does not make
                continue
            values = table.column(f"{label}_{score}").cast(pa.float64()).to_numpy()
            valid = ~np.isnan(values)
            found[f"{label}_{score}"] = {
                "low": low,
                "high": high,
                "all": _bin(values[valid & usable], low, high),
                "others": _bin(values[valid & passes], low, high),
            }
    return found


def _usable(filters: Mapping[str, Filter], table: pa.Table) -> Mask:
    """Rows that filters judged: kept ones, and those whose reason is a filter's."""
    reasons = _flat(table.column("reason"))
    judged = [reason for reason in pc.unique(reasons).to_pylist() if (reason or "").split(":")[0] in filters]
    ours = pc.or_(pc.is_null(reasons), pc.is_in(reasons, value_set=pa.array(judged, pa.string())))
    return np.asarray(ours, dtype=bool)


def _bin(values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float) -> list[int]:
    counts, _ = np.histogram(np.clip(values, low, np.nextafter(high, low)), bins=BINS, range=(low, high))
    return [int(number) for number in counts]
