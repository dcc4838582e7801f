"""What a cluster would make of a profile: readers, actors, the bottleneck, hours.

The one decision: an estimate is arithmetic on rates that were measured (curation/rates.yaml) or given, and names each
of them with its origin; where a rate is unknown it says so and gives no number. Only what the cheap filters let through
reaches CLIP, so that share is a rate too.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.profile import Profile
from curation.resources import Node, Shares, fit, shortage, size

RATES = Path(__file__).with_name("rates.yaml")
# 35,943 of 56,614 real captions pass the cheap filters (docs/real-data.md).
ASSUMED_SURVIVORS = 0.635
# What Ray takes of a machine's memory: 30 % for the object store, and 60 % it gives to tasks.
STORE_SHARE, HEAP_SHARE = 0.3, 0.6
GIVEN = ("read", "decode", "clip", "survivors")

_KIND = re.compile(r"(?:(\d+)\s*x\s+)?(.+)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|TiB|TB)", re.IGNORECASE)
_UNITS = {"gib": 2**30, "gb": 10**9, "tib": 2**40, "tb": 10**12}


def parse_cluster(text: str) -> list[Node]:
    """`cpus=64,gpus=8,memory=512GiB`, or kinds of nodes: `2x cpus=96,gpus=8 + 10x cpus=32`. Raises `ValueError`."""
    nodes: list[Node] = []
    for kind in text.split("+"):
        found = _KIND.fullmatch(kind.strip())
        count, settings = found.groups() if found else (None, "")
        node: dict[str, float] = {}
        for setting in settings.split(","):
            name, _, value = (part.strip() for part in setting.partition("="))
            key = {"cpus": "CPU", "gpus": "GPU", "memory": "memory"}.get(name)
            memory = _MEMORY.fullmatch(value)
            if key == "memory" and memory:
                amount = float(memory[1]) * _UNITS[memory[2].lower()]
                node |= {"memory": amount * HEAP_SHARE, "object_store_memory": amount * STORE_SHARE}
            elif key in ("CPU", "GPU") and value.isascii() and value.isdigit():
                node[key] = float(value)
            else:
                raise ValueError(
                    f"{setting.strip()!r} is none of cpus=64, gpus=8, memory=512GiB; kinds of nodes are joined by +: "
                    "'2x cpus=96,gpus=8 + 10x cpus=32'"
                )
        if not node.get("CPU"):
            raise ValueError(f"{kind.strip()!r}: a node needs CPUs, such as cpus=64")
        nodes += [node] * int(count or 1)
    if not nodes:
        raise ValueError(f"{text!r}: no node at all")
    return nodes


def parse_rate(text: str) -> tuple[str, float]:
    """`read=4700`. Raises `ValueError`."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in GIVEN or not 0 < number < math.inf or (name == "survivors" and number > 1):
        raise ValueError(
            f"{text!r}: must be read=N or decode=N (a second and CPU), clip=N (a second and GPU, or CPU without any), "
            "or survivors=0.5 (the share of pairs that reaches CLIP)"
        )
    return name, number


def this_machine() -> list[Node]:
    """The machine that asks, as Ray would see it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cards = Path("/proc/driver/nvidia/gpus")
    return [
        {
            "CPU": float(len(os.sched_getaffinity(0))),
            "GPU": float(len(list(cards.iterdir())) if cards.is_dir() else 0),
            "memory": memory * HEAP_SHARE,
            "object_store_memory": memory * STORE_SHARE,
        }
    ]


@functools.cache
def measured() -> Mapping[str, Any]:
    """What benchmarks/rates.py measured."""
    import yaml

    rates: dict[str, Any] = yaml.safe_load(RATES.read_text())
    return rates


@dataclass(frozen=True)
class Rate:
    """A number and where it is from."""

    value: float
    origin: str


@dataclass(frozen=True)
class Rates:
    """Pairs or images a second: `read` and `decode` of a CPU, `clip` of an actor's GPUs or of its CPU; None: unknown.

    survivors: the share of pairs that reaches CLIP; 1 without a CLIP stage, where nobody asks.
    """

    read: Rate
    decode: Rate
    clip: Rate | None
    survivors: Rate


def find_rates(profile: Profile, shares: Shares, given: Mapping[str, float], reached: tuple[int, int] | None) -> Rates:
    """reached: of how many pairs so many came to CLIP in what is committed already."""
    known = measured()
    read, decode = (
        Rate(given[name], "given") if name in given else Rate(known[name], "measured, curation/rates.yaml")
        for name in ("read", "decode")
    )
    clip = Rate(given["clip"], "given") if "clip" in given else None
    models = [getattr(rule, "model", None) for rule in profile.pixel.values()]
    if clip is None and not shares.actor_gpus and all(model in known["clip_cpu"] for model in models):
        # Filters of one actor work one after another.
        rates = [known["clip_cpu"][model] for model in models]
        clip = Rate(1 / sum(1 / rate for rate in rates), "measured, curation/rates.yaml") if rates else None
    if "survivors" in given:
        survivors = Rate(given["survivors"], "given")
    elif reached and reached[1]:
        survivors = Rate(reached[0] / reached[1], f"of {reached[1]:,} pairs committed here")
    else:
        survivors = Rate(ASSUMED_SURVIVORS, "assumed, docs/real-data.md")
    return Rates(read, decode, clip, survivors)


@dataclass(frozen=True)
class Estimate:
    """Pairs a second that each stage could take alone; None: a rate is unknown. `decoding`: CPUs hold the GPUs back."""

    readers: float
    actors: float | None
    decoding: bool = False

    @property
    def pairs(self) -> float | None:
        return None if self.actors is None else min(self.readers, self.actors)


def estimate(profile: Profile, shares: Shares, rates: Rates) -> Estimate:
    readers = shares.reads * shares.read_cpus * rates.read.value
    if not profile.pixel:
        return Estimate(readers, math.inf)
    if rates.clip is None:
        return Estimate(readers, None)
    decoding = False
    if shares.actor_gpus:
        gpu, cpu = rates.clip.value * shares.actor_gpus, shares.threads * rates.decode.value
        one, decoding = min(gpu, cpu), cpu < gpu
    else:
        one = rates.clip.value * shares.actor_cpus
    return Estimate(readers, shares.full * one / rates.survivors.value, decoding)


def resource_lines(profile: Profile, nodes: Sequence[Node], unit_bytes: int | None = None) -> list[str]:
    """What the resources of a profile come to on a cluster."""
    shares = fit(profile, nodes, unit_bytes)
    memory = f", {size(shares.read_memory)} of memory" if shares.read_memory else ""
    lines = [
        f"on {_describe(nodes)}",
        f"readers: up to {shares.reads:,} at once, {_many(shares.read_cpus, 'CPU')}{memory} each",
    ]
    if profile.pixel:
        low, high = shares.actors
        pool = f"{low:,}" if low == high else f"{low:,} to {high:,}, {shares.full:,} where all find room"
        gpus = f", {_many(shares.actor_gpus, 'GPU')}" if shares.actor_gpus else ""
        memory = f", {size(shares.actor_memory)} of memory" if shares.actor_memory else ""
        batch = profile.resources.clip.batch_size
        lines.append(f"actors: {pool}; {_many(shares.actor_cpus, 'CPU')}{gpus}{memory} each, batches of {batch:,}")
        lines.append(f"waiting between them: at most {size(shares.blocks or 0)} of units")
    lacking = shortage(profile, nodes)
    return [*lines, f"too little: {lacking}"] if lacking else lines


def estimate_lines(
    profile: Profile,
    nodes: Sequence[Node],
    pairs: float,
    given: Mapping[str, float],
    reached: tuple[int, int] | None = None,
    unit_bytes: int | None = None,
) -> list[str]:
    """Hours for a number of pairs, the bottleneck, and every rate behind them."""
    shares = fit(profile, nodes, unit_bytes)
    rates = find_rates(profile, shares, given, reached)
    found = estimate(profile, shares, rates)
    lines = [f"{pairs:,.0f} pairs"]
    read = (
        f"reading: {_rate(rates.read)} x {_many(shares.reads * shares.read_cpus, 'CPU')} = {found.readers:,.0f} pairs/s"
    )
    lines.append(read)
    if profile.pixel:
        lines.append(f"reach CLIP: {rates.survivors.value:.1%} ({rates.survivors.origin})")
        if found.actors is None or rates.clip is None:
            what = "a GPU" if shares.actor_gpus else "a CPU"
            lines.append(f"CLIP: no rate of this model on {what} is known: give --rate clip=N (docs/operations.md)")
            return lines
        if found.decoding:
            decode = _rate(rates.decode)
            how = f"{_many(shares.threads, 'CPU')} decoding {decode}, below a GPU's {rates.clip.value:,.0f}/s"
        elif shares.actor_gpus:
            how = f"{_rate(rates.clip)} a GPU x {shares.actor_gpus:g}"
        else:
            how = f"{_rate(rates.clip)} a CPU x {shares.actor_cpus:g}"
        lines.append(f"CLIP: {_many(shares.full, 'actor')}, {how}: {found.actors:,.0f} pairs/s")
    if not found.pairs:
        return lines
    hours = pairs / found.pairs / 3600
    if profile.pixel and found.actors is not None:
        slow, other = ("CLIP", "readers") if found.actors < found.readers else ("reading", "actors")
        if slow == "CLIP" and found.decoding:
            slow = "decoding for CLIP: raise resources.clip.num_cpus"
        busy = found.pairs / max(found.readers, found.actors)
        lines.append(f"bottleneck: {slow} (the {other} are busy {busy:.0%} of the time)")
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    spent = f"{hours * cpus:,.0f} CPU-hours" + (f", {hours * gpus:,.0f} GPU-hours" if gpus else "")
    days = f" ({hours / 24:,.1f} days)" if hours >= 48 else ""
    lines.append(f"{found.pairs:,.0f} pairs/s: {hours:,.1f} hours{days}, {spent} of the whole cluster")
    lines.append("an upper bound: storage, network, start-up and Ray's own work are not in it")
    return lines


def _rate(rate: Rate) -> str:
    return f"{rate.value:,.0f}/s ({rate.origin})"


def _describe(nodes: Sequence[Node]) -> str:
    kinds: dict[str, int] = {}
    for node in nodes:
        parts = [_many(node.get("CPU", 0.0), "CPU")]
        parts += [_many(node["GPU"], "GPU")] if node.get("GPU") else []
        parts += [f"{size(node['memory'])} for tasks"] if node.get("memory") else []
        name = ", ".join(parts)
        kinds[name] = kinds.get(name, 0) + 1
    return " and ".join(f"{_many(count, 'node')} of {name}" for name, count in kinds.items())


def _many(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
