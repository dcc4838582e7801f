"""The command line: python -m curation validate | download | plan | run | stats.

Exit status: 0 done; 1 the run did not end whole; 2 a mistake in the call or the configuration; 130 interrupted;
143 terminated.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.config import Pipelines
    from curation.profile import Profile


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in ASCII still shows every caption
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    # Imported here: `--help` must answer at once.
    from curation.config import ConfigError, load
    from curation.manifests import ManifestError
    from curation.plan import RunError
    from curation.termination import Terminated
    from filters.base import RuleError
    from shards import manifest
    from shards.storage import StorageError, Unavailable

    try:
        pipelines = load(options.config)
        command = {"validate": _validate, "plan": _plan, "run": _run, "stats": _stats, "download": _download}[
            options.command
        ]
        status = command(pipelines, options)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except Unavailable as error:  # no mistake of the caller's: the same call may succeed later
        _complain(str(error))
        return 1
    except (StorageError, RuleError, RunError, ManifestError, manifest.ManifestError) as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        _complain("interrupted; what is committed stays: the same command goes on from there")
        return 130
    except Terminated:
        _complain("terminated; what is committed stays: the same command goes on from there")
        return 143


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m curation",
        description="Curates image-text pairs: raw pairs in; shards, ledger and funnel out.",
        epilog="example: python -m curation run demo --set clip_score.min=0.3",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=f"example: python -m curation {example}")
        added.add_argument(
            "profile", nargs="?", metavar="PROFILE", help="a profile of the file; may be left out if it is the only one"
        )
        added.add_argument("--config", default="pipelines.yaml", metavar="FILE", help="default: %(default)s")
        return added

    def overridable(
        added: argparse.ArgumentParser, help_: str = "overrides a setting of the profile; may be repeated"
    ) -> None:
        added.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides", help=help_)

    command("validate", "Reports every error of the configuration, with line and nearest match.", "validate")
    for name, text, example in (
        ("plan", "Shows units, order of filters, resources and output, without running.", "plan demo"),
        ("run", "Runs what is left of a profile and prints the funnel.", "run demo --limit 1000"),
    ):
        added = command(name, text, example)
        added.add_argument(
            "--limit", type=_positive, metavar="N", help="whole units from the first on, until they hold N samples"
        )
        overridable(added)
        if name == "plan":
            added.add_argument(
                "--cluster",
                type=_cluster,
                metavar="NODES",
                help="what the resources mean on 'cpus=64,gpus=8,memory=512GiB' or '2x cpus=96,gpus=8 + 8x cpus=32'; "
                "default: this machine",
            )
            added.add_argument("--pairs", type=_pairs, metavar="N", help="adds an estimate of hours for N pairs (5e9)")
            added.add_argument(
                "--rate",
                action="append",
                default=[],
                type=_rate,
                metavar="A=N",
                dest="rates",
                help="a rate known better than curation/rates.yaml: read=4700 or decode=250 (a second and CPU), "
                "clip=312 (a second and GPU, or CPU without any), survivors=0.5 (the share that reaches CLIP); "
                "may be repeated",
            )
        if name == "run":
            added.add_argument(
                "--address", help="a running Ray cluster; default: RAY_ADDRESS, else Ray on this machine"
            )
            added.add_argument(
                "--replace",
                action="store_true",
                help="removes from the output what came of input files that have changed or gone since",
            )
            added.add_argument(
                "--max-failed-units",
                type=_count,
                metavar="N",
                help="stops once more than N units failed; default: no limit",
            )
    added = command(
        "download", "Fetches what is missing of a profile's URL lists into raw tars.", "download cc3m --limit 100000"
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
        "--limit", type=_positive, metavar="N", help="whole shards from the first on, until they hold N rows"
    )
    added.add_argument("--address", help="a running Ray cluster; default: RAY_ADDRESS, else processes of this machine")
    overridable(added)
    added = command("stats", "Prints the funnel of a run.", "stats demo")
    added.add_argument("--json", action="store_true", help="the funnel as JSON")
    overridable(added, argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _cluster(text: str) -> Any:
    from curation.estimate import parse_cluster

    return _typed(parse_cluster, text)


def _rate(text: str) -> Any:
    from curation.estimate import parse_rate

    return _typed(parse_rate, text)


def _typed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pairs(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pairs, such as 5e9")
    return number


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _complain(line: str) -> None:
    sys.stderr.write(f"error: {line}\n")


def _print(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def _validate(pipelines: Pipelines, options: argparse.Namespace) -> int:
    if options.profile is not None:
        profiles = {options.profile: pipelines.profile(options.profile)}
    else:
        profiles = pipelines.validate()
    from curation.plan import asked
    from filters.base import RuleError

    for name, profile in profiles.items():
        steps = [*(mapper.name for mapper in profile.mappers), *profile.filters]
        _print(f"{name}: ok ({profile.input.format}: {' > '.join(steps)})")
        for label, rule in profile.rules():
            try:
                asked(label, rule.check)
            except RuleError as error:  # not a mistake in the file: weights may be made or mounted later
                _print(f"{name}: not ready to run: {error}")
    return 0


def _plan(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.plan import make_plan, plan_lines

    plan = make_plan(pipelines.profile(options.profile, options.overrides), options.limit)
    for line in plan_lines(plan, options.cluster, options.pairs, dict(options.rates)):
        _print(line)
    return 0


def _run(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.job import JobError
    from curation.run import run
    from curation.stats import funnel_lines
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    try:
        with terminable():
            result = run(
                profile,
                options.limit,
                options.address,
                replace=options.replace,
                max_failed_units=options.max_failed_units,
            )
    except JobError as error:
        _complain(str(error))
        return 1

    folder = profile.run_folder
    if not result.worked:
        _print(f"{profile.name}: nothing to do, all {result.totals.units:,} units are committed in {folder}")
    _print_funnel(
        profile,
        funnel_lines(
            result.totals, list(profile.filters), profile.target_retention, result.seconds if result.worked else None
        ),
    )
    for warning in result.totals.warnings[:5]:
        _print(f"warning: {warning}")
    if len(result.totals.warnings) > 5:
        _print(
            f"... and {len(result.totals.warnings) - 5:,} more warnings: python -m curation stats {profile.name} --json"
        )
    _print(f"shards: {folder}/shards, ledger: {folder}/ledger, data set: {folder}/manifest.json")
    if result.failed:
        for outcome in result.failed[:5]:
            _complain(f"unit {outcome.unit_id[:12]}: {outcome.error}")
        failed = (
            f"{len(result.failed)} {'unit' if len(result.failed) == 1 else 'units'} failed, the others are committed"
        )
        _complain(f"{failed}; see {folder}/failed and run again once mended")
        return 1
    return 0


def _download(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.download import download, download_lines
    from curation.job import JobError
    from curation.raw import SourceError
    from curation.termination import terminable

    profile = pipelines.profile(options.profile, options.overrides)
    try:
        with terminable():
            result = download(
                profile,
                options.retry_failed,
                options.limit,
                options.address,
                accept_unreachable=options.accept_unreachable,
            )
    except SourceError as error:
        _complain(str(error))
        return 2
    except JobError as error:
        _complain(str(error))
        return 1
    if not result.worked:
        _print(f"{profile.name}: nothing to do, all {result.shards:,} shards are in {profile.input.path}")
    for line in download_lines(result):
        _print(line)
    if options.retry_failed and result.changed:
        _print(f"{result.changed:,} tars changed: a run that has read them before needs --replace")
    _print(f"raw tars: {profile.input.path}; next: python -m curation run {profile.name}")
    for error_line in result.failed[:5]:
        _complain(error_line)
    if result.failed:
        count = f"{len(result.failed)} {'shard' if len(result.failed) == 1 else 'shards'}"
        _complain(f"{count} could not be fetched, the others are there; the same command goes on with them")
        return 1
    if result.left:
        _complain(f"{result.left:,} shards are not whole, as if another download had written them too: call it again")
        return 1
    return 0


def _stats(pipelines: Pipelines, options: argparse.Namespace) -> int:
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
        _print(json.dumps(shape, ensure_ascii=False, indent=1))
        return 0
    _print_funnel(profile, funnel_lines(totals, labels, profile.target_retention, seconds))
    for warning in totals.warnings:
        _print(f"warning: {warning}")
    for record in failed:
        _print(f"failed: {record['input']}: {record['error']}")
    if not complete:
        _print(f"not complete: {totals.units:,} units are committed; python -m curation run {profile.name} goes on")
    return 0


def _print_funnel(profile: Profile, lines: Sequence[str]) -> None:
    _print(f"{profile.name}")
    for line in lines:
        _print(line)


if __name__ == "__main__":
    sys.exit(main())
