"""`plan`: what a run would do, and what it would take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from curation.commands.common import Commands, command, overridable, positive, show, typed

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    added = command(
        commands, "plan", "Shows units, order of filters, resources and output, without running.", "plan demo"
    )
    added.add_argument(
        "--limit", type=positive, metavar="N", help="whole units from the first on, until they hold N samples"
    )
    overridable(added)
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


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    from curation.plan import make_plan, plan_lines

    plan = make_plan(pipelines.profile(options.profile, options.overrides), options.limit)
    for line in plan_lines(plan, options.cluster, options.pairs, dict(options.rates)):
        show(line)
    return 0


def _cluster(text: str) -> Any:
    from curation.estimate import parse_cluster

    return typed(parse_cluster, text)


def _rate(text: str) -> Any:
    from curation.estimate import parse_rate

    return typed(parse_rate, text)


def _pairs(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pairs, such as 5e9")
    return number
