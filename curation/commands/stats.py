"""`stats`: the funnel of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from curation.commands.common import Commands, command, opened_as_asked, overridable, show, show_funnel

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(commands, "stats", "Prints the funnel of a run.", "stats demo")
    added.add_argument("--json", action="store_true", help="the funnel as JSON")
    added.add_argument(
        "--decision",
        metavar="FP",
        help="a later decision of the run (`rescore`), by the first digits of its fingerprint",
    )
    overridable(added, argparse.SUPPRESS)


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    import json

    from curation.stats import funnel, funnel_lines

    profile, _, opened = opened_as_asked(pipelines, options)
    totals, seconds, failed, labels = opened.totals(), opened.wall_seconds(), opened.failures(), opened.labels
    if options.json:
        shape = {
            **funnel(totals, labels),
            "target_retention": profile.target_retention,
            "hits": totals.hits,
            "wall_seconds": seconds,
            "worker_seconds": totals.seconds,
            "units": totals.units,
            "complete": opened.complete,
            "failed_units": failed,
            "warnings": totals.warnings,
            "decisions": opened.decisions(),
        }
        show(json.dumps(shape, ensure_ascii=False, indent=1))
        return 0
    show_funnel(profile, funnel_lines(totals, labels, profile.target_retention, seconds))
    for warning in totals.warnings:
        show(f"warning: {warning}")
    for record in failed:
        show(f"failed: {record['input']}: {record['error']}")
    for decision in opened.decisions():
        show(f"decision {decision['decision_fp'][:16]}: {_told(decision)}")
    if not opened.complete:
        command = "rescore" if opened.is_decision else "run"
        show(f"not complete: {totals.units:,} units are committed; python -m curation {command} {profile.name} goes on")
    return 0


def _told(decision: dict[str, Any]) -> str:
    if "kept" not in decision:
        return "not complete: rescore with the same --set goes on"
    share = "" if decision["retention"] is None else f" ({decision['retention']:.1%})"
    state = "its shards stand" if decision["selected"] else "not selected"
    return f"{'; '.join(decision['changes'])}: kept {decision['kept']:,}{share}, {state}"
