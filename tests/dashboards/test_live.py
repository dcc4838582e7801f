"""A run that is killed and resumed on a real cluster, as a real Prometheus sees it and every panel shows it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation import stats
from curation.opened import open_run
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, write_config, write_tar
from tests.curation.processes import PATIENCE_S, driver
from tests.curation.test_run import clip_settings
from tests.curation.test_submit import Head, running
from tests.dashboards.prometheus import Prometheus, Series, installed, prometheus
from tests.dashboards.test_board import QUERIES, substituted

# Ray's processes tell their numbers every 10 s; a gauge that is not told anew lives for twice that.
QUICK = {"RAY_metrics_report_interval_ms": "3000"}
UNITS = 32
FREE = 20


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    installed("prometheus")
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    with running(QUICK) as started:
        yield started


def some_input(folder: Path) -> dict[str, Any]:
    """Samples of every end but "not fetched", and a unit that fails; gives the profile's settings.

    Units from FREE on wait until `open` stands: how soon Prometheus is told of the others is no race with the run's end.
    """
    for number in range(UNITS - 1):
        bad = [pair("x", "no", image()), pair("y", "A good caption of a picture", image()[:700])]
        bad.append(pair("z", "A photo of <PERSON> in a garden", image()))
        if number >= FREE:
            bad.append(pair("w", "A good caption before the gate", image()))
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(4, number * 10)) + flat(bad))
    write_tar(folder / "in/boom.tar", pair("x", "a caption that goes boom", image()))
    filters = {
        **CHEAP,
        "clip_score": clip_settings(),
        # Half a second a unit: Prometheus sees the histogram of batches grow, however soon the run ends.
        "slow": {"filter": "tests.curation.plugins:PixelsSlow", "seconds": 0.5},
        "gate": {"filter": "tests.curation.plugins:PixelsGate", "folder": str(folder), "word": "before the gate"},
        "mine": {"filter": "tests.curation.test_unit:Raises"},
    }
    return {"filters": filters, "mappers": ["patterns"], "target_retention": 0.55}


def test_a_killed_and_resumed_run(tmp_path: Path, head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TINY_CLIP", str(tmp_path))
    config = write_config(tmp_path, **some_input(tmp_path))
    folder = tmp_path / "runs/test"
    started = time.time()
    command = ("run", "--config", config, "--address", head.address)
    discovery = head.folder / "prom_metrics_service_discovery.json"
    with prometheus(tmp_path, discovery) as watched:
        with driver(tmp_path / "killed.log", *command) as victim:
            victim.wait_until(lambda: told(watched, "samples_listed") > 0, "its first commits were told")
            victim.send(signal.SIGKILL)
        assert len(list((folder / "units").glob("*.json"))) <= FREE
        with driver(tmp_path / "resumed.log", *command) as resumed:
            resumed.wait_until(lambda: len(drivers(watched, started)) == 2, "it was at work")
            (tmp_path / "open").touch()
            while resumed.alive:
                seen = told(watched, "samples_listed")
                assert seen <= sum(unit["listed"] for unit in open_run(str(folder)).units())
                time.sleep(0.5)
            assert resumed.end() == 1, resumed.said  # one unit fails
        deadline = time.monotonic() + PATIENCE_S
        while told(watched, "run_active", "min") != 0:
            assert time.monotonic() < deadline, "its end was never told"
            time.sleep(0.2)
        as_committed(watched, time.time(), folder)
        for title, query in QUERIES:
            found = watched.over(substituted(query), started)
            assert found, f"{title}: {query} gives no series"
        assert len(drivers(watched, started)) == 2
        assert {rule["name"]: rule["health"] for rule in watched.rules()}.keys() >= {"WinnowStalled"}
        assert all(rule["health"] == "ok" for rule in watched.rules())


def told(watched: Prometheus, name: str, aggregate: str = "max") -> float:
    """One number of the run as Prometheus has it now; -1 where it has none. Asked without haste: two cores do it all."""
    time.sleep(0.2)
    return watched.ask(f'{aggregate} (ray_winnow_{name}{{profile="test"}})').get((), -1)


def drivers(watched: Prometheus, started: float) -> list[Series]:
    """The processes that have told of the run."""
    time.sleep(0.2)
    return watched.over('sum by (WorkerId) (ray_winnow_run_active{profile="test"})', started)


def as_committed(watched: Prometheus, at: float, folder: Path) -> None:
    """Compares every gauge, as it was told at a time, with the sums of the unit manifests, to the sample."""
    opened = open_run(str(folder))
    totals = opened.totals()
    funnel = stats.funnel(totals, opened.labels)

    def gauge(name: str, *by: str) -> dict[tuple[str, ...], float]:
        return watched.ask(f"max by ({', '.join(by)}) (ray_winnow_{name})", at)

    assert gauge("samples_listed") == {(): totals.listed}
    assert gauge("samples_seen") == {(): totals.seen}
    first = sum(label["dropped_first"] for label in funnel["filters"].values())
    samples = gauge("samples", "outcome")
    assert samples == {
        ("not_fetched",): 0,
        ("unreadable",): UNITS - 1,
        ("mapper_dropped",): UNITS - 1,
        ("filter_dropped",): first,
        ("kept",): totals.kept,
    }
    assert sum(samples.values()) == totals.listed
    for what in ("scored", "dropped_first", "failed", "failed_alone", "errors"):
        assert gauge(f"filter_{what}", "filter") == {
            (label,): numbers[what] for label, numbers in funnel["filters"].items()
        }
    states = {"committed": UNITS - 1, "failed": 1, "pending": 0, "beyond_limit": 0}
    assert gauge("units", "state") == {(state,): number for state, number in states.items()}
    assert len(opened.failures()) == 1
    assert gauge("retention") == {(): totals.retention}
    assert gauge("target_retention") == {(): 0.55}
    assert gauge("worker_seconds", "step") == {(step,): pytest.approx(value) for step, value in totals.seconds.items()}
    last = max(path.stat().st_mtime for path in (folder / "units").glob("*.json"))
    assert 0 <= gauge("last_commit_timestamp_seconds")[()] - last < 15
    assert set(gauge("samples_per_second", "stage")) == {("read",), ("judged",), ("pixels",), ("kept",)}
