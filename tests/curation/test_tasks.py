"""One function on many items, in processes and on Ray: every item ends once, in a value or in words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from curation.cluster import JobError
from curation.tasks import MAX_ATTEMPTS, Ended, spread, usual_workers
from shards.storage import StorageError
from tests.curation.plugins import Panic


@dataclass(frozen=True)
class Work:
    """Squares numbers; `odd` says what happens to the number 5."""

    odd: str = ""
    folder: str = ""

    def __call__(self, number: int) -> int:
        if self.folder:
            (Path(self.folder) / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if number == 5:
            match self.odd:
                case "ours":
                    raise StorageError("cannot read five.tar: not found: check the path")
                case "theirs":
                    raise ZeroDivisionError("by five\nand more")
                case "panic":
                    raise Panic("five\x1b[31m gave up")
                case "odd bytes":
                    raise ValueError("caf\udce9")
                case "dies":
                    os._exit(3)
                case "dies once":
                    if len(list(Path(self.folder).glob("5-*"))) == 1:
                        os._exit(3)
        return number * number


IN_WORDS = {
    "ours": "cannot read five.tar: not found: check the path",
    "theirs": "ZeroDivisionError: by five",
    "panic": "Panic: five gave up",
    "odd bytes": "ValueError: caf\\udce9",
}


def squares(ended: list[Ended[int, int]], error: str | None = None) -> None:
    """Every number ended once, five with this error, if any."""
    expected = {number: Ended(number, value=number * number) for number in range(12)}
    if error is not None:
        expected[5] = Ended(5, error=error)
    assert sorted(ended, key=lambda end: end.item) == list(expected.values())


@pytest.mark.parametrize(("workers", "odd"), [*((1, odd) for odd in IN_WORDS), (2, "theirs"), (2, "panic")])
def test_what_a_function_raises_is_its_items_end_in_words(workers: int, odd: str) -> None:
    squares(list(spread(Work(odd), range(12), None, workers)), IN_WORDS[odd])


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    ended = list(spread(Work(folder=str(tmp_path)), range(12), None, 1))
    assert [end.item for end in ended] == list(range(12))
    assert {path.name.split("-")[1] for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1_000_000):
            taken.append(number)
            yield number

    for workers, ahead in ((1, 1), (2, 20)):
        taken.clear()
        with closing(spread(Work(), items(), None, workers)) as ended:
            assert next(ended).value is not None
        assert len(taken) <= ahead


def test_whoever_stops_early_leaves_nobody_behind() -> None:
    before = set(psutil.Process().children())
    with closing(spread(time.sleep, [0.0] + [300.0] * 20, None, 2)) as ended:
        assert next(ended) == Ended(0.0)
        workers = [child for child in psutil.Process().children() if child not in before]
    assert len(workers) >= 2
    _, living = psutil.wait_procs([child for child in workers if "resource_tracker" not in str(child)], timeout=20)
    assert not [child for child in living if "spawn_main" in str(child.cmdline())]


def test_a_process_that_dies_ends_the_work_and_names_what_it_may_have_been_at() -> None:
    with pytest.raises(JobError, match="the same command goes on") as caught:
        list(spread(Work("dies"), range(12), None, 2, name=lambda number: f"number {number}"))
    line = str(caught.value)
    assert "\n" not in line
    assert "number 5" in line
    assert "a process died while it worked on one of number " in line


def test_an_interrupt_is_no_items_end() -> None:
    def stop(number: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(spread(stop, range(3), None, 1))


def test_workers_are_worth_it() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert usual_workers(0) == usual_workers(1) == usual_workers(15, 8) == 1
    assert usual_workers(16, 8) == min(cpus, 2)
    assert usual_workers(10**6) == cpus


# ---------------------------------------------------------------- on Ray


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("odd", ["", "theirs", "panic", "odd bytes"])
def test_the_same_on_ray(odd: str, tmp_path: Path) -> None:
    squares(list(spread(Work(odd, str(tmp_path)), range(12), "auto", 1, cpus=0.5)), IN_WORDS.get(odd))
    assert str(os.getpid()) not in {path.name.split("-")[1] for path in tmp_path.iterdir()}


@pytest.mark.usefixtures("ray_local")
def test_ray_tries_an_item_again_whose_worker_died(tmp_path: Path) -> None:
    squares(list(spread(Work("dies once", str(tmp_path)), range(12), "auto", 1)))
    assert len(list(tmp_path.glob("5-*"))) == 2


@pytest.mark.usefixtures("ray_local")
def test_an_item_that_kills_every_worker_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    ended = list(spread(Work("dies", str(tmp_path)), range(12), "auto", 1))
    squares(ended, f"its worker died {MAX_ATTEMPTS} times; see Ray's logs")
    assert len(list(tmp_path.glob("5-*"))) == MAX_ATTEMPTS


@pytest.mark.usefixtures("ray_local")
def test_ray_is_given_no_more_than_it_can_run_at_once(tmp_path: Path) -> None:
    """Each item may be megabytes: what waits stays with the caller."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with closing(spread(Work(), items(), "auto", 1)) as ended:
        assert next(ended).value is not None
        assert len(taken) <= 2 * 2 + 1


@pytest.mark.usefixtures("ray_local")
def test_the_environment_names_a_cluster_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    squares(list(spread(Work(folder=str(tmp_path)), range(12), None, 1)))
    assert str(os.getpid()) not in {path.name.split("-")[1] for path in tmp_path.iterdir()}


def test_no_cluster_there_is_one_line() -> None:
    code = "from curation.tasks import spread; list(spread(abs, [1], 'localhost:1', 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode
    assert "no Ray at 'localhost:1'" in done.stderr.splitlines()[-1]
