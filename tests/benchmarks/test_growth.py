"""Time a sample and memory do not grow with the number of units, nor do odd inputs break a unit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import growth, job
from benchmarks.measure import Cost
from benchmarks.odd_inputs import odd_inputs
from curation.config import load
from curation.manifests import read_all
from curation.units import plan_units
from shards.storage import Storage
from tests.benchmarks.test_job import cpu, curate, plain, tars


def peak(work: Callable[[], object]) -> int:
    """The most memory (PSS) of this process and of the Ray that it started, while it worked."""
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            total = 0
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += process.memory_full_info().pss
            most.append(total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(most)


def test_time_and_memory_do_not_grow_with_units(ray_local: None, tmp_path: Path) -> None:
    """What each further unit costs, so that what a job costs by itself hides nothing."""
    found = []
    curate(job.write_start(tmp_path / "start", tars(tmp_path / "one", 1, 500)))
    for count in (4, 12, 36):
        config = job.write_profile(tmp_path / f"home-{count}", tars(tmp_path / f"in-{count}", count, 500))
        peaks: list[int] = []
        found.append((cpu(lambda config=config, peaks=peaks: peaks.append(peak(lambda: curate(config)))), peaks[0]))
    (first, first_peak), (then, _), (last, last_peak) = found
    early, late = (then - first) / 8, (last - then) / 24
    assert late < 2 * max(early, 0.05), found
    assert last_peak / first_peak < 1.3


def ran(name: str, samples: int, cpu_seconds: Sequence[Sequence[float]], gib: float) -> growth.Ran:
    turns = tuple(tuple(Cost(9.0, seconds, int(gib * 2**30), "") for seconds in turn) for turn in cpu_seconds)
    return growth.Ran(growth.Input(name, Path(), samples), (Cost(5.0, 10.0, 0, ""),) * 3, turns, {"kept": 1})


def test_growth_is_by_sample_without_the_start_up() -> None:
    small = ran("small", 10_000, [(11.0, 12.0, 40.0), (12.0, 12.0, 13.0)], 1.0)
    large = ran("large", 100_000, [(32.0,), (30.0,)], 1.1)
    assert small.cpu == [12.0, 12.0]  # the middle one of each turn
    assert small.each == [pytest.approx(200.0)] * 2
    time, memory = large.over(small)
    assert time.pairs == (pytest.approx(1.1), pytest.approx(1.0))
    assert memory.middle == pytest.approx(1.1)
    assert large.further(small) == pytest.approx(1e6 * 19 / 90_000)


def test_odd_inputs_break_no_unit(tmp_path: Path) -> None:
    found = {}
    for number, made in enumerate(odd_inputs(tmp_path, tiny=1_500, huge=1, long=2, judged=1)):
        home = tmp_path / f"home-{number}"
        began = time.process_time()
        plain(job.write_profile(home, made.tars, units={"max_samples": 500}, **made.settings))
        manifests = list(read_all(Storage.open(str(home / "runs/job"))))
        assert sum(manifest["listed"] for manifest in manifests) == made.samples
        found[made.name] = (len(manifests), {reason for manifest in manifests for reason in manifest["reasons"]})
        assert time.process_time() - began < 10
    assert found["captions of 1 MB"] == (1, {"unreadable:caption_too_long"})
    assert found["captions of 1 MB, judged"] == (1, {"text_length"})
    assert found["images of 8000 x 6000"][1] <= {"kept"} | set(load_labels(tmp_path))
    assert found["images of 12000 x 8000"] == (1, {"unreadable:too_many_pixels"})
    assert found["1,500 tiny samples"][0] == 3


def load_labels(tmp_path: Path) -> list[str]:
    return [*load(tmp_path / "home-0/full.yaml").profile(job.PROFILE).filters, "patterns", "html"]


def test_links_make_an_input_of_any_size(tmp_path: Path) -> None:
    source = tars(tmp_path / "in", 2, 3)
    made = growth.linked(tmp_path / "links", sorted(source.iterdir()), 25_000, 500)
    assert made.settings == {"units": {"max_samples": 500}}
    names = sorted(path.name for path in made.tars.iterdir())
    assert names == [f"{number:05d}.tar" for number in range(5)]
    profile = load(job.write_profile(tmp_path / "home", made.tars)).profile(job.PROFILE)
    ids = {unit.short for unit in plan_units(profile)[1]}
    assert len(ids) == 5  # equal contents, units of their own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "10000"], "at least two"),
        (["--sizes", "5000", "7000"], "multiples of 5,000"),
        (["--sizes", "5000", "5000"], "no two alike"),
        (["--pairs", "0"], "at least 1"),
        (["--unit", "0"], "a divisor of 5,000"),
        (["--unit", "3000"], "a divisor of 5,000"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["growth", "--work", str(tmp_path), *arguments])
    assert growth.main() == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert said in errors
    assert errors.count("\n") == 1
