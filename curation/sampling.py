"""The units that a calibration looks at: in which order they are drawn, how many, and their scores.

The one decision: units are drawn by a hash of seed and id, so the sample is the same whatever else the input holds, a
larger one holds the smaller ones, and what was scored once, by a run or by an earlier calibration, is never scored
again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from curation import lease, ledger, manifests
from curation.cluster import JobError, cluster
from curation.counts import count
from curation.interval import Interval, Ratio
from curation.opened import LedgerError, Opened, read_ledger
from curation.plan import Plan, RunError
from curation.profile import Profile
from curation.redecide import columns_of
from curation.run import work
from curation.stats import Totals
from curation.threshold import Scored, scored
from curation.units import Unit
from shards.storage import Storage

# The first sample has at least so many units, where there are so many: fewer hardly tell their spread.
LEAST = 5
# A sample that grows beyond this share takes all: another growth would cost more than the units it spares.
NEARLY_ALL = 0.9
# It aims so much narrower than it was asked for: one that stops as soon as it may stops by chance, too early.
AIM = 0.9


@dataclass(frozen=True)
class Sample:
    """How the sample is drawn. share: of the units, at first. within: percentage points to either side."""

    share: float = 0.02
    seed: int = 0
    within: float = 0.5


def drawn(units: Sequence[Unit], seed: int) -> list[Unit]:
    """The units in an order that depends on the seed and on their ids alone."""
    return sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit.unit_id}".encode()).digest())


def first_size(units: int, sample: Sample) -> int:
    """How many of so many units are looked at first."""
    return min(units, max(LEAST, math.ceil(sample.share * units - 1e-9)))


def next_size(ratio: Ratio, interval: Interval | None, units: int, sample: Sample) -> int:
    """How many units make the interval as narrow as was asked for; as many as there are now where it is."""
    if ratio.units >= units or (interval is not None and interval.half * 100 <= sample.within):
        return ratio.units
    if interval is None:
        return min(units, 2 * ratio.units)
    size = ratio.needed(units, sample.within / 100 * AIM)
    return units if size > NEARLY_ALL * units else size


@dataclass
class Pool:
    """The units scored so far."""

    plan: Plan
    profile: Profile
    label: str
    run: Opened | None
    address: str | None
    held: lease.Lease
    stack: ExitStack
    scores: list[Scored] = field(default_factory=list)
    # Where each unit's ledger part is, and its manifest.
    sources: list[tuple[Storage, dict[str, Any]]] = field(default_factory=list)
    reused: int = 0

    def take(self, units: Sequence[Unit]) -> None:
        """Adds units: from the run's ledger where it has all their scores, else scored here and now."""
        from_run = self._from_run({unit.unit_id for unit in units})
        rest = [unit for unit in units if unit.unit_id not in from_run]
        self._score(rest)
        here = self._here({unit.unit_id for unit in rest})
        for unit in units:
            if unit.unit_id in from_run:
                manifest, values = from_run[unit.unit_id]
                self._add(self.run.output if self.run else self.plan.output, manifest, values)
                self.reused += 1
            else:
                table = self.read(self.plan.output, here[unit.unit_id])
                self._add(self.plan.output, here[unit.unit_id], scored(table, self.profile.filters, self.label))

    def read(self, output: Storage, manifest: dict[str, Any]) -> pa.Table:
        """The columns that decide, of a unit."""
        try:
            return read_ledger(output, manifest, columns_of(self.profile.filters))
        except LedgerError as error:
            if output is not self.plan.output:
                raise
            raise RunError(
                f"{output.uri}: a ledger part is missing or damaged: delete this folder and calibrate again"
            ) from error

    def _add(self, output: Storage, manifest: dict[str, Any], values: Scored) -> None:
        self.sources.append((output, manifest))
        self.scores.append(values)

    def _from_run(self, unit_ids: set[str]) -> dict[str, tuple[dict[str, Any], Scored]]:
        found: dict[str, tuple[dict[str, Any], Scored]] = {}
        if self.run is None:
            return found
        for manifest in manifests.read_all(self.run.output, unit_ids):
            if manifest["decision_fp"] == self.run.decision:
                values = scored(self.read(self.run.output, manifest), self.profile.filters, self.label)
                if not values.lacking:
                    found[manifest["unit_id"]] = manifest, values
        return found

    def _score(self, units: Sequence[Unit]) -> None:
        """Runs the job on those that this folder does not hold yet."""
        stood = manifests.committed(self.plan.output)
        done = {unit.unit_id for unit in units if stood.get(unit.unit_id) == self.plan.prints.decision}
        plan = replace(self.plan, units=list(units), done=done)
        if not plan.pending:
            return
        self.stack.enter_context(cluster(self.address))  # once: a sample that grows finds it there
        with closing(work(plan, self.address, self.held, shards=False)) as outcomes:
            failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed:
            raise JobError(
                f"{len(failed)} of the sample's units failed, and a sample without them would not be one (see "
                f"{self.plan.output.uri}/failed); mend them, or take them out of the input, and calibrate again: the "
                f"others stay scored; the first: unit {failed[0].unit_id[:12]}: {failed[0].error}"
            )

    def _here(self, unit_ids: set[str]) -> dict[str, dict[str, Any]]:
        """Manifests of the units that the calibration's own folder holds."""
        found = manifests.read_all(self.plan.output, unit_ids) if unit_ids else ()
        return {
            manifest["unit_id"]: manifest for manifest in found if manifest["decision_fp"] == self.plan.prints.decision
        }

    def decided(self, profile: Profile) -> Totals:
        """The sample's numbers with other thresholds."""
        totals = Totals()
        for output, manifest in self.sources:
            rows = self.read(output, manifest)
            problems = ledger.problems_of(rows, profile.filters)
            table = ledger.with_verdicts(rows.drop_columns(ledger.VERDICT.names), profile.filters, problems)
            numbers = count(profile.filters, table)
            totals.add({**manifest, **numbers, "files": {"shard": None}, "seconds": {}})
        return totals
