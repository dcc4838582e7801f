"""`dashboard`: a live page of runs and decisions."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from curation.commands.common import Commands, bare

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = bare(
        commands,
        "dashboard",
        "Shows runs as a web page, live while they go on: funnel, thresholds to drag, samples, search, comparison. "
        "It only reads, and listens on this machine only unless --host says otherwise.",
        "dashboard runs",
    )
    added.add_argument(
        "runs",
        nargs="*",
        default=["runs"],
        metavar="RUNS",
        help="folders of runs, or runs themselves (paths or uris); default: runs",
    )
    added.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: %(default)s")
    added.add_argument("--port", type=_port, default=8900, metavar="N", help="default: %(default)s; 0 takes a free one")
    added.add_argument(
        "--token",
        help="asked of who opens the page; default: WINNOW_DASHBOARD_TOKEN, else none on loopback, a new one elsewhere",
    )
    added.add_argument(
        "--config", default="pipelines.yaml", metavar="FILE", dest="profiles", help="named in the commands it shows"
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def main(pipelines: Pipelines | None, options: argparse.Namespace) -> int:
    from curation.dashboard.serve import serve

    with suppress(KeyboardInterrupt):  # the usual way to end it; nothing was at work
        serve(options.runs, options.host, options.port, options.token, options.profiles)
    return 0
