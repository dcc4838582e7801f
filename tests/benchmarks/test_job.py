"""The whole job on Ray costs little more than its unit functions, and the benchmark sees where outputs differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import job
from benchmarks.loop import loop
from benchmarks.measure import BenchmarkError
from benchmarks.odd_inputs import small_png, write_tar
from curation.config import load
from curation.run import run


def tars(folder: Path, count: int, samples: int) -> Path:
    """Tars of tiny images: what a sample costs beside its bytes."""
    picture = small_png()
    for number in range(count):
        captioned = (
            (f"{number:03d}{row:06d}", "png", picture, f"A red chair number {row} beside the window".encode())
            for row in range(samples)
        )
        write_tar(folder / f"{number:03d}.tar", captioned)
    return folder


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of the Ray that it started."""
    before = _seconds()
    work()
    time.sleep(0.2)
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in _seconds().items())


def _seconds() -> dict[int, float]:
    found = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def curate(config: Path) -> None:
    """The job of a configuration on the Ray of this process."""
    assert not run(load(config).profile(job.PROFILE)).failed


def plain(config: Path) -> None:
    loop(config, job.PROFILE, 1)


def test_the_ray_job_costs_little_more_than_the_loop(ray_local: None, tmp_path: Path) -> None:
    source = tars(tmp_path / "in", 8, 1_000)
    curate(job.write_start(tmp_path / "start", source))  # both workers are up, and have loaded what they need
    seconds: dict[str, list[float]] = {"ray": [], "plain": []}
    for turn in range(3):  # the least of three: a worker that Ray starts anew costs as much as the work
        for side, work in (("ray", curate), ("plain", plain)):
            config = job.write_profile(tmp_path / f"{side}-{turn}", source)
            seconds[side].append(cpu(lambda work=work, config=config: work(config)))
    ours, loop = min(seconds["ray"]), min(seconds["plain"])
    told = job.must_agree(tmp_path / "ray-0/runs/job", tmp_path / "plain-0/runs/job")
    assert told == {"files": 40, "listed": 8_000, "kept": 8_000}
    # Some 0.7: units are small, and a job has costs of its own. The benchmark itself has 50,000 samples of real sizes.
    assert loop / ours > 0.45


def test_a_byte_that_differs_is_seen(tmp_path: Path) -> None:
    source = tars(tmp_path / "in", 1, 3)
    for side in ("one", "two"):
        plain(job.write_profile(tmp_path / side, source))
    runs = [tmp_path / side / "runs/job" for side in ("one", "two")]
    assert job.must_agree(*runs) == {"files": 5, "listed": 3, "kept": 3}
    (shard,) = (runs[1] / "shards").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BenchmarkError, match=f"differ in 1 of 5 files: .*{shard.name}"):
        job.must_agree(*runs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--samples", "0"], "--pairs, --samples and --images are at least 1"),
        (["--plain", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["job", "--work", str(tmp_path), *arguments])
    assert job.main() == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert said in errors
    assert errors.count("\n") == 1
