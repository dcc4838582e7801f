"""Counts exactly what other thresholds would keep, several at once, from ledger rows that are held in memory.

The one decision: it is always the run's own rows that are counted, as `rescore` decides them again: of a later decision
they are counted with its thresholds. Only filters whose thresholds change are asked; of all others it is the ledger
that says who failed them. So a count over a million rows takes tenths of a second.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import ledger
from curation.counts import failures
from curation.dashboard import rows
from curation.dashboard.whatif import Rules, changed
from curation.ledger import Mask
from curation.opened import Opened

Changes = Mapping[str, Mapping[str, Any]]


@dataclass
class _Unit:
    """A unit's rows: those that filters judged, what each failed (columns: labels), and scores by label once asked.

    `silent`: an error without a word why: no filter failed it, and it is not kept. `scored`: by label.
    """

    usable: Mask
    fails: Mask
    silent: Mask
    scores: dict[str, pa.Table] = field(default_factory=dict)
    scored: dict[str, Mask] = field(default_factory=dict)


class Counting:
    """Counts for one run. rules: its filters, those that are known here."""

    def __init__(self, opened: Opened, rules: Rules) -> None:
        self._opened, self._rules = opened, rules
        self._lock = threading.Lock()
        self._units: dict[str, _Unit] = {}

    def count(self, units: Sequence[str], seen: int, changes: Changes, order: Sequence[str] = ()) -> dict[str, Any]:
        """kept, unscored and dropped-first by label, of these units.

        changes: thresholds by label and field. order: of the filters, if not the run's. unscored: samples that pass
        what comes before a filter now and have no score of it. Raises `KeyError` for a filter or threshold that is not
        known, `pydantic.ValidationError` for a value that the filter refuses; `LedgerError`.
        """
        here = self._opened.labels
        labels = list(order or here)
        changing = {label: changed(self._rules[label], fields) for label, fields in changes.items() if fields}
        # What looks at pixels has no score of what was dropped before it. Of an unknown filter that may be so.
        late = [label for label in here if label not in self._rules or "pixels" in self._rules[label].needs]
        kept = unscored = 0
        dropped: Counter[str] = Counter()
        with self._lock:
            self._load(units, list(changing), late)
            for unit_id in units:
                unit = self._units[unit_id]
                fails = unit.fails[:, [here.index(label) for label in labels]]
                for label, rule in changing.items():
                    failing, broken, _ = ledger.verdicts(rule, unit.scores[label])
                    fails[:, labels.index(label)] = unit.usable & (failing | broken)
                lost = unit.usable & fails.any(axis=1)
                lacking = np.zeros(len(fails), dtype=bool)
                for label in late:
                    lacking |= ~unit.scored[label] & ~fails[:, : labels.index(label)].any(axis=1)
                passing = unit.usable & ~unit.silent & ~lost
                kept += int(np.count_nonzero(passing & ~lacking))
                unscored += int(np.count_nonzero(passing & lacking))
                for place, number in enumerate(np.bincount(fails[lost].argmax(axis=1), minlength=len(labels))):
                    dropped[labels[place]] += int(number)
        return {
            "kept": kept,
            "seen": seen,
            "retention": kept / seen if seen else None,
            "unscored": unscored,
            "dropped": {label: dropped[label] for label in labels},
        }

    def _load(self, units: Sequence[str], labels: Sequence[str], late: Sequence[str]) -> None:
        """Reads what of these units is not in memory. What has left the run is forgotten."""
        for gone in self._units.keys() - set(units):
            del self._units[gone]
        here = self._opened.labels
        lacking = [unit for unit in units if unit not in self._units]
        there = rows.columns(self._opened, lacking[0]) if lacking and late else []
        telling = {label: list(ledger.own_scores(there, label, here)) for label in late}
        wanted = [*ledger.VERDICT.names, *(name for names in telling.values() for name in names)]
        for unit_id, table in rows.read_many(self._opened, lacking, wanted):
            self._units[unit_id] = unit = _judged(table, here)
            for label, names in telling.items():
                came = ~unit.fails[:, : here.index(label)].any(axis=1)
                valid = [np.asarray(pc.is_valid(table.column(name)), dtype=bool) for name in names]
                unit.scored[label] = np.logical_or.reduce([came, *valid])
        for label in labels:
            scores = {f"{label}_{score}": score for score in self._rules[label].scores}
            lacking = [unit for unit in units if label not in self._units[unit].scores]
            for unit_id, table in rows.read_many(self._opened, lacking, list(scores)):
                self._units[unit_id].scores[label] = table.rename_columns(list(scores.values())).combine_chunks()


def _judged(table: pa.Table, labels: Sequence[str]) -> _Unit:
    fails = failures(labels, table)
    problems = ledger.problems_of(table, dict.fromkeys(labels, None))  # type: ignore[arg-type]
    usable = np.asarray(pc.is_null(problems), dtype=bool)
    silent = usable & ~fails.any(axis=1) & np.asarray(pc.is_valid(table.column("reason")), dtype=bool)
    return _Unit(usable, fails, silent)
