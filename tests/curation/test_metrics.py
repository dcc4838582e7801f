"""Live metrics: that they add up, that a run never suffers from them, and a local run as Prometheus would read it."""

from __future__ import annotations

import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from curation import metrics
from curation.cluster import JobError
from curation.metrics import GAUGES, WINDOW_S, Batches, Live, Rates, numbers, passed
from curation.plan import make_plan
from curation.run import run
from curation.stats import Totals
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.processes import driver
from tests.curation.runs import run_whole
from tests.curation.test_submit import free_ports
from tests.curation.test_unit import files_of, run_plainly

# A label of 100 samples of every end: fetched or not, readable or not, and so on.
TOTALS = Totals(
    units=2,
    listed=100,
    seen=90,
    kept=40,
    reasons={"fetch:404": 10, "unreadable:truncated": 5, "patterns": 3, "clip": 30, "clip:error": 2, "length": 10},
    failed={"clip": 35, "length": 12},
    failed_alone={"clip": 30, "length": 8},
    scored={"length": 85, "clip": 72},
    seconds={"read": 1.5, "clip": 9.0},
)


def some_input(folder: Path, files: int = 3) -> None:
    for number in range(files):
        write_tar(folder / f"in/{number:05d}.tar", flat([*good_pairs(3, number * 10), pair("x", "no", image())]))


def test_numbers_add_up() -> None:
    found = {(name, *labels.values()): value for name, labels, value in numbers(TOTALS, ["length", "clip"])}
    samples = {key[1]: value for key, value in found.items() if key[0] == "winnow_samples"}
    assert samples == {"not_fetched": 10, "unreadable": 5, "mapper_dropped": 3, "filter_dropped": 42, "kept": 40}
    assert sum(samples.values()) == found["winnow_samples_listed",] == 100
    assert found["winnow_samples_seen",] == 90
    assert found["winnow_filter_dropped_first", "clip"] == 32
    assert found["winnow_filter_errors", "clip"] == 2
    assert found["winnow_filter_failed_alone", "length"] == 8
    assert found["winnow_worker_seconds", "clip"] == 9.0
    assert found["winnow_retention",] == 40 / 90
    assert {name for name, _, _ in numbers(Totals(), [])} & {"winnow_retention"} == set()
    for name, labels, _ in numbers(TOTALS, ["length", "clip"]):
        assert tuple(labels) == GAUGES[name][0]


def test_stages_see_fewer_and_fewer() -> None:
    assert passed(TOTALS, ["length", "clip"], "clip") == {"read": 100, "judged": 82, "pixels": 72, "kept": 40}
    assert "pixels" not in passed(TOTALS, ["length"], None)


def test_rates_are_over_the_last_minute() -> None:
    rates = Rates()
    assert rates.add(1000.0, {"read": 500}) == {"read": 0.0}  # a resumed run has done nothing yet
    assert rates.add(1010.0, {"read": 600}) == {"read": 10.0}
    for second in range(1020, 1100, 10):
        told = rates.add(float(second), {"read": 600})
    assert told == {"read": 0.0}
    assert rates.add(1100.0, {"read": 630}) == {"read": 30 / WINDOW_S}


def test_rates_begin_anew_where_units_are_taken_back() -> None:
    rates = Rates()
    rates.add(0.0, {"read": 100})
    assert rates.add(10.0, {"read": 60}) == {"read": 0.0}
    assert rates.add(20.0, {"read": 160}) == {"read": 10.0}


def test_busy_share_is_of_the_last_minute() -> None:
    batches = Batches("test", "clip")
    batches._began = 1000.0
    assert batches.share(1010.0, 5.0) == 0.5
    assert batches.share(1020.0, 10.0) == 0.75
    assert batches.share(1300.0, 6.0) == 0.1
    assert batches.share(1310.0, 100.0) == 1.0


def test_units_by_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_input(tmp_path, 5)
    checked = profile(tmp_path, target_retention=0.5)
    run_whole(checked)
    for manifest in sorted((tmp_path / "runs/test/units").glob("*.json"))[2:]:
        manifest.unlink()
    told: dict[tuple[str, ...], float] = {}
    monkeypatch.setattr(Live, "_set", lambda self, found: told.update({(n, *ls.values()): v for n, ls, v in found}))
    plan = make_plan(checked, limit=12)
    assert plan.first == 3
    missing = [unit for unit in plan.units if not (tmp_path / f"runs/test/units/{unit.short}.json").exists()]
    failed = tmp_path / f"runs/test/failed/{missing[0].short}.json"
    failed.parent.mkdir(exist_ok=True)
    failed.write_text("{}")
    with Live(plan):
        pass
    states = {key[1]: value for key, value in told.items() if key[0] == "winnow_units"}
    assert states["committed"] == 2
    assert states["failed"] == 1
    assert sum(states.values()) == 5
    assert states["pending"] == len({u.unit_id for u in plan.units[:3]} & {u.unit_id for u in missing[1:]})
    assert told["winnow_run_active",] == 0.0
    assert told["winnow_target_retention",] == 0.5
    assert told["winnow_samples_listed",] == 8


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("where", ["Live._set", "Following.summary"])
def test_what_the_metrics_meet_is_told_once_and_the_run_goes_on(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: object) -> Any:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(f"curation.metrics.{where}", breaks)
    monkeypatch.setattr(metrics, "EVERY_S", 0.05)
    for name in ("ray", "plain"):
        some_input(tmp_path / name)
    result = run(profile(tmp_path / "ray"))
    run_plainly(profile(tmp_path / "plain"))
    assert not result.failed
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "plain")
    told = capsys.readouterr().err
    assert told.count("note: live metrics: OSError: the disk is on fire; the run goes on") == 1


@pytest.mark.usefixtures("ray_local")
def test_a_look_that_does_not_end_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_input(tmp_path)
    monkeypatch.setattr(metrics, "LAST_S", 0.5)
    set_later: list[str] = []
    monkeypatch.setattr("ray.util.metrics.Gauge.set", lambda gauge, *_: set_later.append(gauge.info["name"]))
    monkeypatch.setattr("curation.metrics.Following.summary", lambda self: time.sleep(20))
    with Live(make_plan(profile(tmp_path))):
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert set(set_later) == {"winnow_run_active"}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_cannot_be_had_is_told(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    with pytest.raises(JobError, match=r"the Ray of this process runs already, with a port of its own"):
        run(checked, metrics_port=taken)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(JobError, match=rf"--metrics-port {taken}: cannot be had \(.*in use\): give another one"):
        run(checked, metrics_port=taken)
    with pytest.raises(JobError, match=r"--metrics-port 99999: cannot be had"):
        run(checked, metrics_port=99999)
    with pytest.raises(JobError, match=r"the Ray at 'example:6379' runs already"):
        run(checked, address="example:6379", metrics_port=taken)


@pytest.mark.slow
def test_a_local_run_shows_its_numbers_at_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_input(tmp_path)
    write_tar(tmp_path / "in/last.tar", pair("x", "A caption that goes boom", image()))
    gate = tmp_path / "gate"
    gate.mkdir()
    config = write_config(
        tmp_path, filters={**CHEAP, "gate": {"filter": "tests.curation.plugins:Gate", "folder": str(gate)}}
    )
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "2000")
    (port,) = free_ports(1)

    def listed() -> float:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                found = re.findall(r'ray_winnow_samples_listed{.*profile="test".*} (\S+)', answer.read().decode())
        except OSError:
            return 0.0
        return max(map(float, found), default=0.0)

    with driver(tmp_path / "log", "run", "--config", config, "--metrics-port", str(port)) as running:
        running.wait_until(lambda: listed() == 12.0, "all but the unit at the gate were told")
        (gate / "open").touch()
        assert running.end() == 0, running.said


@pytest.mark.slow
def test_a_ray_without_its_agent_runs_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray[data]` alone: what Ray's agent needs cannot be imported, and nothing is exported."""
    some_input(tmp_path)
    config = write_config(tmp_path)
    (tmp_path / "lacking").mkdir()
    for package in ("prometheus_client", "opencensus", "aiohttp_cors"):
        (tmp_path / f"lacking/{package}.py").write_text(f"raise ModuleNotFoundError('no {package}')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lacking"), os.getcwd()]))
    with ExitStack() as stack:
        refused = stack.enter_context(driver(tmp_path / "one", "run", "--config", config, "--metrics-port", "9400"))
        assert refused.end() == 1
        assert "Ray's metrics need more than ray[data]: install winnow-vl[cluster]" in refused.said
        plain = stack.enter_context(driver(tmp_path / "two", "run", "--config", config))
        assert plain.end() == 0, plain.said
        assert "live metrics" not in plain.said
