"""`run`: curates what is left of a profile."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import (
    Commands,
    command,
    complain,
    count,
    on_cluster,
    overridable,
    positive,
    show,
    show_funnel,
)

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(commands, "run", "Runs what is left of a profile and prints the funnel.", "run demo --limit 1000")
    added.add_argument(
        "--limit", type=positive, metavar="N", help="whole units from the first on, until they hold N samples"
    )
    overridable(added)
    on_cluster(added)
    added.add_argument(
        "--replace",
        action="store_true",
        help="removes from the output what came of input files that have changed or gone since",
    )
    added.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="UNIT",
        help="makes a committed unit again (the first 12 digits of its id), such as one whose file is damaged; may be "
        "repeated",
    )
    added.add_argument(
        "--max-failed-units",
        type=count,
        metavar="N",
        help="stops once more than N units failed; default: no limit",
    )
    added.add_argument(
        "--metrics-port",
        type=positive,
        metavar="PORT",
        help="where Prometheus finds the numbers of a run on this machine (docs/dashboards.md), open to all who reach "
        "the port; a cluster has a port of its own",
    )


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.run import run
    from curation.stats import funnel_lines
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    with terminable():
        result = run(
            profile,
            options.limit,
            options.address,
            replace=options.replace,
            redo=options.redo,
            max_failed_units=options.max_failed_units,
            metrics_port=options.metrics_port,
        )
    folder = profile.run_folder
    if not result.worked:
        show(f"{profile.name}: nothing to do, all {result.totals.units:,} units are committed in {folder}")
    show_funnel(
        profile,
        funnel_lines(
            result.totals, list(profile.filters), profile.target_retention, result.seconds if result.worked else None
        ),
    )
    for warning in result.totals.warnings[:5]:
        show(f"warning: {warning}")
    if len(result.totals.warnings) > 5:
        show(
            f"... and {len(result.totals.warnings) - 5:,} more warnings: python -m curation stats {profile.name} --json"
        )
    if result.drift:
        show(f"warning: {result.drift}")
    show(f"shards: {folder}/shards, ledger: {folder}/ledger, data set: {folder}/manifest.json")
    if result.failed:
        for outcome in result.failed[:5]:
            complain(f"unit {outcome.unit_id[:12]}: {outcome.error}")
        failed = (
            f"{len(result.failed)} {'unit' if len(result.failed) == 1 else 'units'} failed, the others are committed"
        )
        complain(f"{failed}; see {folder}/failed and run again once mended")
        return 1
    return 0
