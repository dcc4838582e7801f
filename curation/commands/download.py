"""`download`: URL lists to raw tars."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, complain, on_cluster, overridable, positive, show

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(
        commands,
        "download",
        "Fetches what is missing of a profile's URL lists into raw tars.",
        "download cc3m --limit 100000",
    )
    added.add_argument(
        "--retry-failed", action="store_true", help="also tries the rows again that could not be fetched"
    )
    added.add_argument(
        "--accept-unreachable",
        action="store_true",
        help="also takes shards of which not one server answered; without it they are tried again by the next call",
    )
    added.add_argument(
        "--limit", type=positive, metavar="N", help="whole shards from the first on, until they hold N rows"
    )
    on_cluster(added, "processes of this machine")
    overridable(added)


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.download import download, download_lines
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    with terminable():
        result = download(
            profile,
            options.retry_failed,
            options.limit,
            options.address,
            accept_unreachable=options.accept_unreachable,
        )
    if not result.worked:
        show(f"{profile.name}: nothing to do, all {result.shards:,} shards are in {profile.input.path}")
    for line in download_lines(result):
        show(line)
    if options.retry_failed and result.changed:
        show(f"{result.changed:,} tars changed: a run that has read them before needs --replace")
    show(f"raw tars: {profile.input.path}; next: python -m curation run {profile.name}")
    for error_line in result.failed[:5]:
        complain(error_line)
    if result.failed:
        count = f"{len(result.failed)} {'shard' if len(result.failed) == 1 else 'shards'}"
        complain(f"{count} could not be fetched, the others are there; the same command goes on with them")
        return 1
    if result.left:
        complain(f"{result.left:,} shards are not whole, as if another download had written them too: call it again")
        return 1
    return 0
