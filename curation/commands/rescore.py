"""`rescore`: decides a run again from its ledger."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, complain, on_cluster, overridable, positive, show, show_funnel

if TYPE_CHECKING:
    from curation.config import Pipelines
    from curation.profile import Profile
    from curation.rescore import Decided


def add(commands: Commands) -> None:
    added = command(
        commands,
        "rescore",
        "Decides a run again by other thresholds, from its ledger: no images, no CLIP. The decision lies beside the "
        "run, under decisions/.",
        "rescore demo --set clip_score.min=0.5 --dry-run",
    )
    overridable(added, "another threshold, such as clip_score.min=0.31; may be repeated")
    added.add_argument("--dry-run", action="store_true", help="only shows the funnel; writes nothing")
    added.add_argument(
        "--score-missing",
        action="store_true",
        help="runs CLIP on the samples that these thresholds let reach it and the run's did not",
    )
    added.add_argument("--partial", action="store_true", help="also takes a run that is not complete")
    added.add_argument(
        "--workers", type=positive, metavar="N", help="processes of this machine; default: what the ledger is worth"
    )
    on_cluster(added, "this machine")


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.rescore import rescore, score_missing
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    with terminable():
        if options.score_missing and not options.dry_run:
            failed = score_missing(profile, options.partial, options.address, options.workers)
            if failed:
                return _tell_failed(failed, "could not be scored: mend it and call again")
        decided = rescore(
            profile,
            dry_run=options.dry_run,
            partial=options.partial,
            address=options.address,
            workers=options.workers,
        )
    _show(profile, decided)
    if decided.failed:
        written = "" if decided.folder is None else ", the others are"
        return _tell_failed(decided.failed, f"could not be decided{written}")
    if decided.unscored:
        complain(
            f"{decided.unscored:,} samples pass the filters before CLIP now and have no score of it: "
            "call again with --score-missing, or tighten those filters"
        )
        return 2
    if decided.folder is not None:
        show(f"decision: {decided.folder}; its shards: python -m curation select {profile.name} with the same --set")
    return 0


def _show(profile: Profile, decided: Decided) -> None:
    from curation.stats import funnel_lines

    show(f"changed: {'; '.join(decided.changes) or 'nothing'}")
    show_funnel(profile, funnel_lines(decided.totals, list(profile.filters), profile.target_retention, None))
    before, now = decided.base, decided.totals
    if before.retention is not None and now.retention is not None:
        points = (now.retention - before.retention) * 100
        show(
            f"the run kept {before.kept:,} ({before.retention:.1%}): {now.kept - before.kept:+,}, {points:+.1f} points"
        )
    if 0 < decided.counted < decided.totals.units:
        show(f"of the {decided.counted:,} units that this call decided:")
    if decided.unscored:
        most = now.kept + decided.unscored
        show(f"unscored: {decided.unscored:,}, counted as errors above; scored, {now.kept:,} to {most:,} will be kept")
    for change, number in decided.changed.most_common():
        show(f"  {change:<40}{number:>12,}")
    if decided.worked == decided.totals.units:
        show(f"{decided.totals.listed:,} ledger rows in {decided.seconds:.1f} s")


def _tell_failed(failed: list[str], what: str) -> int:
    for line in failed[:5]:
        complain(line)
    complain(f"{len(failed)} {'unit' if len(failed) == 1 else 'units'} {what}")
    return 1
