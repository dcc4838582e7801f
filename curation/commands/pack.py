"""`pack`: makes few equal shards of many small ones, on a Ray cluster."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from curation.commands.common import Commands, bare, on_cluster, show
from shards import pack_command

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = bare(
        commands,
        "pack",
        "Makes few equal shards, globally shuffled, of many small ones, on a Ray cluster.",
        "pack s3://bucket/curated/laion_en s3://bucket/curated/coyo --size 1GB --out s3://bucket/packed",
    )
    added.description = f"{pack_command.TEXT} The same bytes as `python -m shards pack`, made on a Ray cluster."
    pack_command.add_arguments(added)
    on_cluster(added)


def main(pipelines: Pipelines | None, options: argparse.Namespace) -> int:
    from curation.pack import pack_on_ray
    from curation.plan import RunError
    from curation.submitted import lost_input, lost_output
    from curation.termination import terminable
    from shards.pack_plan import PackError, make_plan
    from shards.progress import Progress
    from shards.storage import Storage

    started = time.monotonic()
    lost = [lost_input("MANIFEST", given) for given in options.manifests]
    if line := next(filter(None, [*lost, lost_output("--out", options.out)]), None):
        raise RunError(line)
    try:
        plan = make_plan(options.manifests, options.size, options.seed, options.incomplete)
    except PackError as error:
        raise RunError(str(error)) from error
    out = Storage.open(options.out)
    with terminable(), Progress("pack") as progress:
        packed = pack_on_ray(plan, out, options.address, progress.told)
    for line in pack_command.summary(packed, out.uri, time.monotonic() - started):
        show(line)
    return 0
