"""`report`: a run or a decision as one HTML file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, bare, show

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = bare(
        commands,
        "report",
        "Writes a run or a decision as one HTML file: funnel, filters, histograms, gallery, comparison.",
        "report demo",
    )
    added.add_argument(
        "run",
        metavar="RUN",
        help="the folder of a run or of a decision (a path or a uri), or a profile's name: its run",
    )
    added.add_argument("--out", metavar="FILE", help="a path or a uri; default: report.html in RUN's folder")
    added.add_argument("--compare", metavar="OTHER", help="another run or decision, named as RUN is: what differs")
    added.add_argument(
        "--partial", action="store_true", help="of what is there, where units are missing; the report says so"
    )
    # Not `config`: a folder needs none, so the file is only read where a profile is named.
    added.add_argument(
        "--config", default="pipelines.yaml", metavar="FILE", dest="profiles", help="default: %(default)s"
    )


def main(pipelines: Pipelines | None, options: argparse.Namespace) -> int:
    from curation.opened import must_be_whole
    from curation.report.compare import compare
    from curation.report.data import gather
    from curation.report.gallery import choose
    from curation.report.page import page
    from curation.report.place import find, write

    opened = find(options.run, options.profiles)
    other = find(options.compare, options.profiles) if options.compare is not None else None
    shown = gather(opened)
    if not options.partial:
        must_be_whole(shown.opened)
        if other is not None:
            must_be_whole(other)
    comparison = compare(shown, other, partial=options.partial) if other is not None else None
    html = page(shown, choose(opened), comparison)
    where = write(html, opened, options.out)
    show(f"report: {where} ({len(html) / 1e6:.1f} MB)")
    return 0
