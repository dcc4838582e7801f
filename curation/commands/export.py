"""`export`: keys, URLs and reasons of a run or a decision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, decision_options, opened_as_asked, overridable, show

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(
        commands,
        "export",
        "Writes keys, URLs and reasons as Parquet, so that a decision can be shared without its data.",
        "export demo --keys kept --out exported/demo",
    )
    added.add_argument(
        "--keys", choices=("kept", "dropped", "all"), default="kept", help="which samples; default: %(default)s"
    )
    added.add_argument("--out", metavar="DIR", help="default: export/<keys>/ of the run or decision")
    decision_options(added)
    overridable(added, argparse.SUPPRESS)


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.export import export
    from curation.opened import must_be_up_to_date, must_be_whole

    _, run, opened = opened_as_asked(pipelines, options)
    if not options.partial:
        must_be_whole(opened)
    if opened.is_decision:
        must_be_up_to_date(run, opened, options.partial)
    exported = export(opened, options.keys, options.out)
    parts = f"{exported.parts:,} {'part' if exported.parts == 1 else 'parts'}"
    show(f"{opened.name}: {exported.rows:,} {options.keys} samples in {parts}: {exported.folder}")
    return 0
