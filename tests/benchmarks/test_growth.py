"""Time a sample and memory do not grow with the number of units, nor do odd inputs break a unit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import growth, job
from benchmarks.odd_inputs import odd_inputs
from curation.config import load
from curation.manifests import read_all
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
    few, many = tars(tmp_path / "few", 4, 500), tars(tmp_path / "many", 20, 500)
    curate(job.write_start(tmp_path / "start", few))
    found = []
    for name, source in (("a", few), ("b", many)):
        config = job.write_profile(tmp_path / name, source)
        peaks: list[int] = []
        found.append((cpu(lambda config=config, peaks=peaks: peaks.append(peak(lambda: curate(config)))), peaks[0]))
    (first, first_peak), (then, then_peak) = found
    assert then / first / 5 < 1.6  # a job has costs of its own, so mostly below 1
    assert then_peak / first_peak < 1.3


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
    made = growth.linked(tmp_path / "links", sorted(source.iterdir()), 25_000)
    names = sorted(path.name for path in made.tars.iterdir())
    assert names == [f"{number:05d}.tar" for number in range(5)]
    profile = load(job.write_profile(tmp_path / "home", made.tars)).profile(job.PROFILE)
    ids = {unit.short for unit in job.plan_units(profile)[1]}
    assert len(ids) == 5  # equal contents, units of their own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "10000"], "at least two"),
        (["--sizes", "5000", "7000"], "multiples of 5,000"),
        (["--pairs", "0"], "at least 1"),
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
