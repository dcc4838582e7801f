"""`stats`: the funnel of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, overridable, show, show_funnel

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(commands, "stats", "Prints the funnel of a run.", "stats demo")
    added.add_argument("--json", action="store_true", help="the funnel as JSON")
    overridable(added, argparse.SUPPRESS)


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    import json

    from curation.run import load_totals
    from curation.stats import funnel, funnel_lines

    profile = pipelines.profile(options.profile, options.overrides)
    totals, seconds, failed, complete = load_totals(profile)
    labels = list(profile.filters)
    if options.json:
        shape = {
            **funnel(totals, labels),
            "target_retention": profile.target_retention,
            "hits": totals.hits,
            "wall_seconds": seconds,
            "worker_seconds": totals.seconds,
            "units": totals.units,
            "complete": complete,
            "failed_units": failed,
            "warnings": totals.warnings,
        }
        show(json.dumps(shape, ensure_ascii=False, indent=1))
        return 0
    show_funnel(profile, funnel_lines(totals, labels, profile.target_retention, seconds))
    for warning in totals.warnings:
        show(f"warning: {warning}")
    for record in failed:
        show(f"failed: {record['input']}: {record['error']}")
    if not complete:
        show(f"not complete: {totals.units:,} units are committed; python -m curation run {profile.name} goes on")
    return 0
