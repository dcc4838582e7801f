"""A later decision's folder: what stands there, how it is begun, gone on with and ended.

The one decision: a unit counts as decided while the run's files are those that it was decided from, and its ledger part
stands. So a run may be changed, or a file lost, and `rescore` makes again what that touches.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from curation import lease, manifests, stats
from curation.cluster import JobError
from curation.commit import remove_others
from curation.opened import DECIDED, DECISION, DECISIONS, Opened, files_print
from curation.plan import RunError
from curation.profile import Fingerprints, Profile
from curation.run import WAVE, open_again
from curation.tasks import Ended
from shards.manifest import LIST_NAME, NAME
from shards.storage import Storage


@dataclass(frozen=True)
class Standing:
    """Units by id. `every`: of the run; `done`: decided already; `stale`: decided, but it does not count any more."""

    every: set[str]
    done: set[str]
    stale: set[str]

    @property
    def todo(self) -> set[str]:
        return self.every - self.done


def place(opened: Opened, prints: Fingerprints) -> Storage:
    """Where a decision of a run lies. Raises `RunError` for the run's own decision."""
    if prints.decision == opened.decision:
        raise RunError(
            f"{opened.output.uri}: these thresholds are those of the run itself: change one in the file or with --set, "
            "such as --set clip_score.min=0.31"
        )
    return Storage.open(opened.output.where(f"{DECISIONS}/{prints.decision}"))


def standing(output: Storage, opened: Opened, prints: Fingerprints) -> Standing:
    """What of the run is decided here. Stale: it left the run, was made again in it, or its ledger part is gone."""
    every = {unit for unit, decision in manifests.committed(opened.output).items() if decision == opened.decision}
    decided = manifests.committed(output, DECIDED)
    if not decided:
        return Standing(every, set(), set())
    now = {manifest["unit_id"]: files_print(manifest["files"]) for manifest in opened.units()}
    sizes = {entry.path: entry.size for entry in output.list("ledger")}
    stale = set()
    for manifest in manifests.read_all(output, folder=DECIDED):
        unit_id, part = manifest["unit_id"], manifest["files"]["ledger"]
        if now.get(unit_id) != files_print(manifest["run_files"]) or sizes.get(part["path"]) != part["bytes"]:
            stale.add(unit_id)
    done = {unit_id for unit_id, decision in decided.items() if decision == prints.decision}
    return Standing(every, done - stale, stale)


def begin(output: Storage, opened: Opened, profile: Profile, prints: Fingerprints, found: Standing) -> None:
    """Begins a decision, or goes on with it: what is stale goes. Killed in the middle, the next call does it again."""
    output.delete(DECISION)
    if found.stale - found.every:
        for name in (NAME, LIST_NAME):
            output.delete(name)
    if found.todo:
        open_again(output)
    if found.stale:
        # First what `select` made of them, last what tells that they are stale.
        manifests.forget(output, found.stale)
        remove_others(output, {unit_id[:12] for unit_id in found.every})
        manifests.forget(output, found.stale, DECIDED)
    record = {
        **opened.record,
        "profile": profile.model_dump(mode="json"),
        "filters": {label: rule.name for label, rule in profile.filters.items()},
        "decision_fp": prints.decision,
        "thresholds": prints.thresholds,
        "decided_from": opened.decision,
    }
    output.write("run.json", json.dumps(record, ensure_ascii=False, indent=1).encode(), durable=True)


def compacting(ended: Iterator[Ended[Any, Any]], output: Storage, held: lease.Lease) -> Generator[Ended[Any, Any]]:
    """Passes on how units end, and compacts their manifests wave by wave. Raises `JobError` for a lost lease."""
    manifests.compact(output, folder=DECIDED)  # first: a call that is killed in every wave would pile loose ones up
    for number, end in enumerate(ended, 1):
        if held.lost:
            raise JobError(held.lost)
        yield end
        if number % WAVE == 0:
            manifests.compact(output, folder=DECIDED)
    manifests.compact(output, folder=DECIDED)


def end(output: Storage, opened: Opened, prints: Fingerprints, changes: list[str], units: int) -> stats.Totals:
    """Writes decision.json, the mark that a decision came to its end; gives its totals. units: of the run."""
    totals = manifests.sum_up(output, prints.decision, folder=DECIDED).totals
    record = {
        "decision_fp": prints.decision,
        "decided_from": opened.decision,
        "changes": changes,
        "units": totals.units,
        "complete": opened.complete and totals.units == units,
        "funnel": stats.funnel(totals, list(prints.thresholds)),
    }
    output.write(DECISION, json.dumps(record, ensure_ascii=False, indent=1).encode(), durable=True)
    return totals
