"""rescore, select and --score-missing that are killed, stopped and starved: the same command then ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from curation.opened import open_run
from curation.rescore import rescore
from curation.select import select
from tests.curation.deciding import (
    FILTERS,
    LOOSER,
    MISSING,
    TIGHTER,
    checked,
    configure,
    copied,
    decision_of,
    fresh,
    must_be_clean,
    options,
    same_as,
    state_of,
    write_input,
)
from tests.curation.processes import PATIENCE_S, Driver, driver
from tests.curation.runs import run_whole
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow

UNITS = 12
LATE = {**FILTERS, "bright": {"filter": "tests.curation.plugins:Late", "min": 124.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and in `expected/<first threshold>/test` what new runs with other thresholds make of its input."""
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    write_input(folder, UNITS)
    config = configure(folder, filters=LATE)
    run_whole(checked(config))
    for sets in (TIGHTER, LOOSER, MISSING):
        fresh(folder.parent / "expected" / sets[0], config, sets)
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    """The configuration of a run of one's own."""
    return copied(base, tmp_path / "copy", filters=LATE)


def expected(base: Path, sets: tuple[str, ...]) -> Path:
    return base.parent / "expected" / sets[0] / "test"


def whole(config: Path, log: Path, command: str, sets: tuple[str, ...], *more: str) -> str:
    """What the command, undisturbed, says."""
    with driver(log, command, *options(config, sets), *more) as last:
        assert last.end() == 0, last.said
        return last.said


def count(folder: Path) -> int:
    return len(list(folder.glob("*.json")))


# What a command leaves for every unit, by which its progress is seen.
WHERE = {"rescore": "decided", "select": "units"}


@pytest.mark.parametrize(
    ("command", "kills"),
    [
        ("rescore", 2),
        ("select", 1),
        pytest.param("rescore", 20, marks=pytest.mark.slow),
        pytest.param("select", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(base: Path, config: Path, tmp_path: Path, command: str, kills: int) -> None:
    """kill -9 while it starts, between and in the middle of units, and when all units are done."""
    before = state_of(config.parent / "runs/test")
    folder = decision_of(config, LOOSER)
    chance = chances()
    if command == "select":
        rescore(checked(config, *LOOSER))
    for kill in range(kills):
        log = tmp_path / f"{kill}.log"
        with driver(log, command, *options(config, LOOSER), "--workers", "2") as victim:
            if kill % 5 == 4:
                time.sleep(chance.uniform(0, 3))
            else:
                wanted = min(UNITS, 1 + kill * UNITS // kills)
                wait_for(victim, folder / WHERE[command], wanted)
                time.sleep(chance.uniform(0, 0.15))
            victim.send(signal.SIGKILL)
            victim.end()
            assert victim.left() == []
    whole(config, tmp_path / "last.log", command, LOOSER, "--workers", "2")
    select(checked(config, *LOOSER), workers=1)
    same_as(folder, expected(base, LOOSER))
    assert state_of(config.parent / "runs/test") == before
    assert open_run(str(folder)).complete


def chances() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def wait_for(victim: Driver, folder: Path, wanted: int, kind: str = "*.json") -> None:
    """Waits for so many files, or for the command's end: it may have come before it is met."""
    deadline = time.monotonic() + PATIENCE_S
    while victim.alive and len(list(folder.glob(kind))) < wanted:
        assert time.monotonic() < deadline, victim.said
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_scoring_what_is_missing_is_killed(base: Path, config: Path, tmp_path: Path) -> None:
    """Also more often than a unit may kill its worker: what a dead driver left counts against no unit."""
    kills = 15
    before = state_of(config.parent / "runs/test")
    scores = config.parent / "runs/test/scores"
    chance = chances()
    with_missing = [*options(config, MISSING), "--score-missing"]
    with ExitStack() as stack:  # whoever a victim leaves behind lives on while the next one begins
        for kill in range(kills):
            victim = stack.enter_context(driver(tmp_path / f"{kill}.log", "rescore", *with_missing))
            if kill % 3 == 1:
                time.sleep(chance.uniform(0, 12))
            else:
                wait_for(victim, scores, 1 + kill * UNITS // kills, "*.parquet")
                time.sleep(chance.uniform(0, 0.15))
            victim.send(signal.SIGKILL)
            victim.end()
        whole(config, tmp_path / "last.log", "rescore", MISSING, "--score-missing")
    select(checked(config, *MISSING), workers=1)
    same_as(decision_of(config, MISSING), expected(base, MISSING))
    # A driver that was killed when nothing was left to score: nobody had to take its lease over.
    (config.parent / "runs/test/lease.json").unlink(missing_ok=True)
    must_be_clean(config.parent / "runs/test")
    after = state_of(config.parent / "runs/test")
    assert {path: data for path, data in after.items() if not path.startswith("scores/")} == before
    assert len(list(scores.iterdir())) == UNITS


# ---------------------------------------------------------------- stopped


@pytest.fixture
def late() -> Iterator[Callable[[float], None]]:
    """Makes commands slow from here on: seconds a unit, about."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda seconds: patch.setenv("LATE_S", str(seconds / 5))


Late = Callable[[float], None]
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("command", "workers", "number", "whom"),
    [
        ("rescore", "2", INT, "group"),
        ("rescore", "1", TERM, "driver"),
        ("select", "2", TERM, "group"),
        pytest.param("rescore", "2", TERM, "group", marks=pytest.mark.slow),
        pytest.param("rescore", "2", TERM, "driver", marks=pytest.mark.slow),
        pytest.param("rescore", "1", INT, "group", marks=pytest.mark.slow),
        pytest.param("select", "2", TERM, "driver", marks=pytest.mark.slow),
        pytest.param("select", "2", INT, "group", marks=pytest.mark.slow),
        pytest.param("select", "1", INT, "group", marks=pytest.mark.slow),
        pytest.param("select", "1", TERM, "driver", marks=pytest.mark.slow),
    ],
)
def test_stopped_in_order(
    config: Path, tmp_path: Path, late: Late, command: str, workers: str, number: signal.Signals, whom: str
) -> None:
    """SIGTERM, and Ctrl-C, which a terminal sends to everybody: one line, the status, and nobody works on."""
    folder = decision_of(config, LOOSER)
    if command == "select":
        rescore(checked(config, *LOOSER))
    late(0.5)
    with driver(tmp_path / "log", command, *options(config, LOOSER), "--workers", workers) as victim:
        victim.wait_until(lambda: count(folder / WHERE[command]) >= 1, "the first unit")
        victim.remember()
        if whom == "group":
            os.killpg(victim.pid, number)
        else:
            victim.send(number)
        assert victim.end() == {TERM: 143, INT: 130}[number], victim.said
        assert victim.left() == []
        word = {TERM: "terminated", INT: "interrupted"}[number]
        assert errors_of(victim) == [f"error: {word}; what is committed stays: the same command goes on from there"]
    late(0)
    assert not (folder / "lease.json").exists()
    assert 1 <= count(folder / WHERE[command]) < UNITS
    assert open_run(str(folder)).complete == (command == "select")


def errors_of(ended: Driver) -> list[str]:
    """All that it said, but for its progress."""
    return [line for line in ended.said.splitlines() if not line.startswith("test: ")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT])
def test_stopped_at_any_time(base: Path, config: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Also while processes start, which know nothing yet of who is to answer a Ctrl-C."""
    for step in range(24):
        with driver(tmp_path / f"{step}.log", "rescore", *options(config, LOOSER), "--workers", "2") as victim:
            victim.wait_until(lambda: "rescore: 0/" in victim.said, "its start")
            time.sleep(step / 12)
            victim.remember()
            if victim.alive:
                os.killpg(victim.pid, number)
            assert victim.end() in (0, {TERM: 143, INT: 130}[number]), victim.said
            assert "Traceback" not in victim.said
            assert victim.left() == []
    whole(config, tmp_path / "last.log", "rescore", LOOSER)
    select(checked(config, *LOOSER), workers=1)
    same_as(decision_of(config, LOOSER), expected(base, LOOSER))


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT])
def test_stopped_while_what_is_missing_is_scored(
    base: Path, config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """While Ray starts, and while it is at work."""
    root = config.parent / "runs/test"
    with_missing = [*options(config, MISSING), "--score-missing"]
    for step in range(4):
        with driver(tmp_path / f"{step}.log", "rescore", *with_missing) as victim:
            if step:
                victim.wait_until(lambda: "to do; starting Ray" in victim.said, "the start of Ray")
                time.sleep(2 * step)
            else:
                victim.wait_until(lambda: list((root / "scores").glob("*")), "the first unit")
            victim.send(number)
            assert victim.end() in (0, {TERM: 143, INT: 130}[number]), victim.said
            assert "Traceback" not in victim.said
        assert not (root / "lease.json").exists()
    whole(config, tmp_path / "last.log", "rescore", MISSING, "--score-missing")
    select(checked(config, *MISSING), workers=1)
    same_as(decision_of(config, MISSING), expected(base, MISSING))
    must_be_clean(root)


def test_two_at_once(base: Path, config: Path, tmp_path: Path, late: Late) -> None:
    """The second one is told who is at work, and harms nothing. Other decisions of the run are free."""
    folder = decision_of(config, TIGHTER)
    rescore(checked(config, *LOOSER))
    late(0.3)
    with driver(tmp_path / "first.log", "rescore", *options(config, TIGHTER), "--workers", "1") as first:
        first.wait_until(lambda: count(folder / "decided") >= 1, "the first unit")
        first.send(signal.SIGSTOP)  # while the others are tried
        late(0)
        for command in ("rescore", "select"):
            with driver(tmp_path / f"{command}.log", command, *options(config, TIGHTER), "--partial") as second:
                assert second.end() == 2, second.said
                (line,) = errors_of(second)
                assert f"another run is at work here (process {first.pid} of " in line
                assert f"stop it there with `kill {first.pid}`" in line
        select(checked(config, *LOOSER), workers=1)
        first.send(signal.SIGCONT)
        assert first.end() == 0, first.said
    select(checked(config, *TIGHTER), workers=1)
    for sets in (TIGHTER, LOOSER):
        same_as(decision_of(config, sets), expected(base, sets))


@pytest.mark.parametrize("command", ["rescore", pytest.param("select", marks=pytest.mark.slow)])
def test_a_worker_is_killed(base: Path, config: Path, tmp_path: Path, late: Late, command: str) -> None:
    """One line that names the units that it may have been at, and the others end with it."""
    folder = decision_of(config, TIGHTER)
    if command == "select":
        rescore(checked(config, *TIGHTER))
    late(0.5)
    with driver(tmp_path / "log", command, *options(config, TIGHTER), "--workers", "2") as victim:
        victim.wait_until(lambda: count(folder / WHERE[command]) >= 1, "the first unit")
        victim.workers[0].kill()
        assert victim.end() == 1, victim.said
        assert victim.left() == []
        (line,) = errors_of(victim)
        assert line.startswith("error: a process died while it worked on one of ")
        shorts = {path.name[:12] for path in (config.parent / "runs/test/units").iterdir()}
        named = line.partition("one of ")[2].partition(":")[0].split(", ")
        assert set(named) <= shorts
        assert "what is done stays: the same command goes on" in line
    late(0)
    assert not (folder / "lease.json").exists()
    whole(config, tmp_path / "again.log", command, TIGHTER, "--workers", "2")
    select(checked(config, *TIGHTER), workers=1)
    same_as(folder, expected(base, TIGHTER))


# ---------------------------------------------------------------- a disk that is full


@pytest.mark.parametrize(
    ("command", "workers"),
    [
        ("rescore", "2"),
        ("select", "1"),
        pytest.param("rescore", "1", marks=pytest.mark.slow),
        pytest.param("select", "2", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_in_mid_work(base: Path, tmp_path: Path, command: str, workers: str) -> None:
    folder = tmp_path / "copy"
    config = copied(base, folder, runs=folder / "disk/runs", filters=LATE)
    with small_disk(folder / "disk", "64m") as disk:
        (folder / "runs").rename(folder / "away")
        shutil.copytree(folder / "away", disk / "runs")
        decision = decision_of(config, LOOSER)
        if command == "select":
            rescore(checked(config, *LOOSER))
        free = os.statvfs(disk)
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(bytes(free.f_bavail * free.f_frsize - {"rescore": 200_000, "select": 400_000}[command]))
        with driver(tmp_path / "log", command, *options(config, LOOSER), "--workers", workers) as starved:
            assert starved.end() == 1, starved.said
            errors = [line for line in starved.said.splitlines() if line.startswith("error: ")]
            assert "no space left on the device: free some" in errors[0]
            assert "Traceback" not in starved.said
        assert 0 < count(decision / WHERE[command]) < UNITS
        assert not open_run(str(decision)).complete or command == "select"
        filler.unlink()
        whole(config, tmp_path / "again.log", command, LOOSER, "--workers", workers)
        select(checked(config, *LOOSER), workers=1)
        same_as(decision, expected(base, LOOSER))
