"""The unit functions in a plain loop, one process a core: no Ray, no markers, nothing that could be continued."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.sides import cores
from curation.commit import commit
from curation.config import load
from curation.unit import judge
from curation.units import plan_units
from shards.storage import Storage


def loop(config: Path, name: str, processes: int | None = None, *, shards: bool = True) -> Counter[str]:
    """Curates a profile's units: samples by reason, and `kept`. processes: one a core; 1 is this one."""
    load(config).profile(name)  # what is wrong with it is said here, once
    processes = processes or cores()
    if processes == 1:
        return _work(config, name, shards, 1, 0)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(partial(_work, config, name, shards, processes), range(processes)), Counter())


def _work(config: Path, name: str, shards: bool, processes: int, number: int) -> Counter[str]:
    """One process: each so-manieth unit."""
    profile = load(config).profile(name)
    storage, units = plan_units(profile)
    output, prints = Storage.open(profile.run_folder), profile.fingerprints()
    scorers = {label: rule.setup() for label, rule in profile.cheap.items()}
    reasons: Counter[str] = Counter()
    for unit in units[number::processes]:
        told = commit(profile, prints, judge(profile, storage, unit, scorers), output, shards=shards)
        reasons.update({**told["reasons"], "kept": told["kept"]})
    return reasons
