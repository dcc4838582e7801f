"""Training on Ray: a real local Ray, two workers, the same losses; what is lost starts again, what is wrong does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.trainer.training import TASKS, command, data_set, losses
from trainer import launch, train
from trainer.errors import ConfigError
from trainer.launch import main, workers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("data") / "stage2", TASKS[2], 60)


def kill_a_worker(log: Path, after: int, killed: list[int]) -> None:
    """Kills the process of a rank with SIGKILL when the log has so many lines."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") >= after:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.01)


@pytest.mark.parametrize(("text", "wanted"), [("1", 1), ("8", 8), ("4:8", (4, 8)), ("2:2", (2, 2))])
def test_workers_are_a_number_or_a_range(text: str, wanted: int | tuple[int, int]) -> None:
    assert workers(text) == wanted


@pytest.mark.parametrize("text", ["0", "-1", "two", "4:2", "1:2:3", ":4", "2:", "0:2", ""])
def test_other_workers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--workers {text}: "):
        workers(text)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--workers", "4:2"], "--workers 4:2: 4 is more than 2"),
        (["optim.lrr=1"], "optim.lrr is no setting: did you mean optim.lr?"),
        (["--init-from", "nowhere"], "nowhere"),
        (["data.manifests=[nowhere]"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_before_ray_is_asked(
    wrong: list[str], said: str, model: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launch, "_on_ray", lambda *_: pytest.fail("Ray was asked"))
    assert main([*command(2, data, model, tmp_path / "out"), *wrong]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_two_workers_are_one_process(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main(command(2, data, model, tmp_path / "one")) == 0
    # Paths as users write them, which are the launcher's and not those of a worker.
    monkeypatch.chdir(data.parent)
    arguments = command(2, Path(data.name), model, tmp_path / "two")
    assert main([*arguments, "--workers", "2", "--cpus", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"model: {tmp_path / 'two/model'}"
    assert [*losses(tmp_path / "two")] == [*range(1, 7)]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len([*(tmp_path / "two/checkpoints/step-00000006").glob("*.distcp")]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_the_workers_find_is_one_line_and_not_tried_again(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(2, data, model, tmp_path, "data.lanes=1")
    assert main([*arguments, "--workers", "2", "--cpus", "1"]) == 2
    assert capsys.readouterr().err == "error: 2 ranks for data.lanes=1: every rank needs a lane of its own\n"


@pytest.mark.usefixtures("ray_local")
def test_more_workers_than_this_machine_has_are_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(2, data, model, tmp_path), "--workers", "3:4", "--cpus", "1"]) == 2
    line = "error: 3 workers of 1 CPU each, Ray has 2: fewer --workers, or fewer --cpus\n"
    assert capsys.readouterr().err == line


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("count", ["2", "1:2"])
def test_a_worker_that_is_killed_is_started_again(
    count: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("steps=30", "checkpoint.every=3")
    assert train.main(command(2, data, model, tmp_path / "one", *arguments)) == 0
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "two/metrics.jsonl", 5, killed))
    killer.start()
    status = main([*command(2, data, model, tmp_path / "two", *arguments), "--workers", count, "--cpus", "1"])
    killer.join()
    told = capsys.readouterr().err
    assert status == 0, told
    assert len(killed) == 1
    assert told.count("started again from the last checkpoint") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_retries_come_to_an_end(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "metrics.jsonl", 2, killed))
    killer.start()
    arguments = command(2, data, model, tmp_path, "steps=200", "checkpoint.every=100")
    assert main([*arguments, "--workers", "2", "--cpus", "1", "--retries", "0"]) == 2
    killer.join()
    assert capsys.readouterr().err.startswith("error: training failed, after 0 retries: ")
