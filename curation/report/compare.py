"""Two runs or decisions side by side: what differs in thresholds and numbers, and which samples changed sides.

The one decision: only the same samples are compared. Both must be of one profile and one input; then their ledgers have
the same rows in the same order, and are read side by side, two columns of a unit at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.opened import Opened
from curation.plan import RunError
from curation.report.data import Shown, count, gather

Flip = tuple[str | None, str | None]


@dataclass(frozen=True)
class Comparison:
    """`flips`: samples by (reason in the other, reason in this one), null: kept; of `rows` in `units` units.

    `settings`: (name, there, here) of thresholds that differ; `scoring`: the same of what scores depend on.
    """

    other: Shown
    settings: list[tuple[str, Any, Any]]
    scoring: list[tuple[str, Any, Any]]
    flips: Counter[Flip]
    units: int
    rows: int
    notes: list[str]

    @property
    def gained(self) -> int:
        """Samples that are kept here and were not there."""
        return sum(number for (before, after), number in self.flips.items() if after is None)

    @property
    def lost(self) -> int:
        return sum(number for (before, after), number in self.flips.items() if before is None)


def must_compare(this: Opened, other: Opened) -> None:
    """Raises `RunError` with why two runs or decisions cannot be compared."""
    here, there = this.output.uri, other.output.uri
    if here.rstrip("/") == there.rstrip("/"):
        raise RunError(f"{here}: cannot be compared with itself: give --compare another run or decision")
    if this.name != other.name:
        raise RunError(
            f"{here} and {there} cannot be compared: the one is of profile {this.name!r}, the other of {other.name!r}; "
            "only runs and decisions of one profile have the same samples"
        )
    inputs = [opened.record["input"] for opened in (this, other)]
    if inputs[0].get("sha256") != inputs[1].get("sha256"):
        told = " and ".join(f"{about['uri']} ({about.get('units', '?')} units)" for about in inputs)
        raise RunError(
            f"{here} and {there} cannot be compared: they have read different inputs, or cut them into other units "
            f"({told}), so their samples are not the same"
        )


def compare(this: Shown, other: Opened, *, partial: bool = False) -> Comparison:
    """Compares two of one profile and input. Raises `RunError`, `LedgerError`, `ManifestError`, `StorageError`.

    partial: units that only one of them has are left out of the flips, and told; otherwise they are an error.
    """
    must_compare(this.opened, other)
    here, there = this.opened.record, other.record
    flips: Counter[Flip] = Counter()
    units = rows = 0
    beside = {manifest["unit_id"]: _slim(manifest) for manifest in other.units()}
    alone = 0
    for manifest in this.opened.units():
        match = beside.pop(manifest["unit_id"], None)
        if match is None:
            alone += 1
            continue
        units += 1
        rows += manifest["listed"]
        # One hash, one content: nothing changed sides.
        if manifest["files"]["ledger"]["sha256"] != match["files"]["ledger"]["sha256"]:
            flips += _flips(other, match, this.opened, manifest)
    if (alone or beside) and not partial:
        raise RunError(
            f"{this.opened.output.uri} and {other.output.uri} cannot be compared: {count(alone + len(beside), 'unit')} "
            "of one is not in the other: end both, or compare what both have with --partial"
        )
    notes = []
    if alone or beside:
        notes.append(
            f"Not in both: {count(alone + len(beside), 'unit')}. The funnels and retentions are each one's own; the "
            f"samples that changed sides are those of {count(units, 'unit')} in both."
        )
    settings = list(_differences(there["thresholds"], here["thresholds"]))
    if list(there["thresholds"]) != list(here["thresholds"]):
        orders = [" > ".join(record["thresholds"]) for record in (there, here)]
        settings.append(("order of the filters", orders[0], orders[1]))
    scoring = list(_differences(there["identity"], here["identity"]))
    return Comparison(gather(other), settings, scoring, flips, units, rows, notes)


def _slim(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What finds a unit's ledger: a whole manifest of each of 100,000 units would take gigabytes."""
    kept = {name: manifest[name] for name in ("unit_id", "profile")}
    return {**kept, "files": {"ledger": manifest["files"]["ledger"]}}


def _flips(before: Opened, there: Mapping[str, Any], after: Opened, here: Mapping[str, Any]) -> Counter[Flip]:
    """Samples of a unit whose reason is another one, by both reasons."""
    left, right = before.ledger(there, ["key", "reason"]), after.ledger(here, ["key", "reason"])
    if not left.column("key").equals(right.column("key")):
        raise RunError(
            f"{before.output.uri} and {after.output.uri} cannot be compared: unit {here['unit_id'][:12]} holds other "
            "samples in the one than in the other"
        )
    reasons = [table.column("reason").combine_chunks() for table in (left, right)]
    # Nothing is called "", so it can stand for null, which equals nothing.
    was, is_ = (pc.fill_null(reason, "") for reason in reasons)
    changed = pc.not_equal(was, is_)
    pairs = pa.table({"was": was.filter(changed), "is": is_.filter(changed)})
    counted = pairs.group_by(["was", "is"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({(row["was"] or None, row["is"] or None): row["count_all"] for row in counted})


def _differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, before, after) of every leaf of two JSON values that differs."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif before != after:
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            for index, (left, right) in enumerate(zip(before, after, strict=True)):
                yield from _differences(left, right, f"{path}[{index}]")
        else:
            yield path, before, after
