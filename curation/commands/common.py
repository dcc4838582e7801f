"""What several commands share: their arguments, and lines for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.config import Pipelines
    from curation.opened import Opened
    from curation.profile import Profile

# What `ArgumentParser.add_subparsers` gives.
Commands = Any


def command(commands: Commands, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A command on one profile of a configuration."""
    added = bare(commands, name, text, example)
    added.add_argument(
        "profile", nargs="?", metavar="PROFILE", help="a profile of the file; may be left out if it is the only one"
    )
    added.add_argument("--config", default="pipelines.yaml", metavar="FILE", help="default: %(default)s")
    return added


def bare(commands: Commands, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A command that takes no profile."""
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: python -m curation {example}"
    )
    return added


def overridable(
    added: argparse.ArgumentParser, help_: str = "overrides a setting of the profile; may be repeated"
) -> None:
    added.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides", help=help_)


def decision_options(added: argparse.ArgumentParser) -> None:
    """For commands that read a run, or a later decision of it."""
    added.add_argument(
        "--decision",
        metavar="FP",
        help="a later decision of the run (`rescore`), by the first digits of its fingerprint",
    )
    added.add_argument("--partial", action="store_true", help="also takes what is not complete")


def opened_as_asked(pipelines: Pipelines, options: argparse.Namespace) -> tuple[Profile, Opened, Opened]:
    """The profile, its run, and what is to be shown: a later decision, by --decision or by --set's thresholds."""
    from curation.opened import open_run
    from curation.select import open_decision

    profile = pipelines.profile(options.profile, options.overrides)
    run = open_run(profile.run_folder)
    # What the file says may have moved on since the run; what this call says counts.
    asked = options.overrides and profile.decision_identity() != pipelines.profile(profile.name).decision_identity()
    if options.decision is None and (not asked or run.prints(profile).decision == run.decision):
        return profile, run, run
    return profile, run, open_decision(run, profile, options.decision)


def on_cluster(added: argparse.ArgumentParser, otherwise: str = "Ray on this machine") -> None:
    added.add_argument("--address", help=f"a running Ray cluster; default: RAY_ADDRESS, else {otherwise}")


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def typed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def complain(line: str) -> None:
    sys.stderr.write(f"error: {line}\n")


def show(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def show_funnel(profile: Profile, lines: Sequence[str]) -> None:
    show(f"{profile.name}")
    for line in lines:
        show(line)
