"""`select`: the shards of a later decision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, complain, on_cluster, overridable, positive, show, show_funnel

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(
        commands,
        "select",
        "Writes the shards of a decision that `rescore` made: from the run's shards, and from the raw input what the "
        "run had dropped.",
        "select demo --set clip_score.min=0.5",
    )
    overridable(added, "the thresholds of the decision, as for `rescore`; may be repeated")
    added.add_argument("--decision", metavar="FP", help="the first digits of its fingerprint, instead of --set")
    added.add_argument("--partial", action="store_true", help="also takes a decision that is not complete")
    added.add_argument("--workers", type=positive, metavar="N", help="processes of this machine; default: one a CPU")
    on_cluster(added, "processes of this machine")


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.select import select
    from curation.stats import funnel_lines
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    with terminable():
        selected = select(
            profile,
            options.decision,
            partial=options.partial,
            address=options.address,
            workers=options.workers,
        )
    if not selected.worked:
        show(f"{profile.name}: nothing to do, all {selected.totals.units:,} units are in {selected.folder}")
    target = profile.target_retention
    show_funnel(profile, funnel_lines(selected.totals, list(profile.filters), target, selected.seconds))
    show(f"shards: {selected.folder}/shards, data set: {selected.folder}/manifest.json")
    for line in selected.failed[:5]:
        complain(line)
    if selected.failed:
        count = f"{len(selected.failed)} {'unit' if len(selected.failed) == 1 else 'units'}"
        complain(f"{count} failed, the others are selected; see {selected.folder}/failed and call again once mended")
        return 1
    return 0
