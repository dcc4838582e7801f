"""The training command: what comes out, on any number of ranks, killed or not, and what a user can get wrong."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.training import command, ended, lines, losses, start
from trainer.model.folder import load_model, read_tensors
from trainer.train import main

TRAINED = {1: ("vision.", "adapter.", "projection."), 2: ("",), 3: ("adapter.", "language.")}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in read_tensors(folder)}


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_trains_what_it_shall_and_ends_with_a_complete_folder(
    stage: int, model: Path, data: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(stage, data[stage], model, tmp_path / "out", "steps=12", "optim.lr=3e-3")) == 0
    assert capsys.readouterr().out == f"model: {tmp_path / 'out/model'}\n"
    told = losses(tmp_path / "out")
    assert [*told] == [*range(1, 13)]
    # A random language model that is frozen can learn little.
    assert told[12] < (0.985 if stage == 1 else 0.9) * told[1]
    before, after = tensors(model), tensors(tmp_path / "out/model")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        trains = name.startswith(TRAINED[stage]) and name != "adapter.pos_embed"
        # What no sample names stays: rows of the vocabulary, for one.
        assert trains or torch.equal(tensor, after[name]), name
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name.split(".")[0] for name in moved} == {part.rstrip(".") for part in TRAINED[stage]} - {""} or stage == 2
    assert load_model(tmp_path / "out/model").config.image_size == 32


def test_the_log_tells_what_a_run_is_judged_by(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    assert main(command(2, data[2], model, tmp_path, f"eval.manifests=[{data[2]}]", "eval.every=3")) == 0
    last = lines(tmp_path)[-1]
    first = lines(tmp_path)[0]
    assert {"loss", "lr", "grad_norm", "tokens/s", "images/s", "data_wait", "padding", "skipped"} <= first.keys()
    assert any(key.startswith("loss/") for key in first)
    assert any(key.startswith("eval/loss/") for key in last | lines(tmp_path)[-2])
    assert first["lr"] == pytest.approx(5e-4)
    assert (tmp_path / "samples.jsonl").exists()


def test_killed_and_gone_on_with_is_the_undisturbed_run(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    arguments = ("steps=14", "checkpoint.every=3")
    whole = start(command(2, data[2], model, tmp_path / "whole", *arguments))
    assert ended(whole)[0] == 0
    cut = start(command(2, data[2], model, tmp_path / "cut", *arguments))
    log = tmp_path / "cut/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") >= 8):
        assert cut.poll() is None, cut.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    assert not (tmp_path / "cut/model").exists()
    status, errors = ended(start(command(2, data[2], model, tmp_path / "cut", *arguments)))
    assert status == 0, errors
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same(tmp_path / "cut/model", tmp_path / "whole/model")


def test_asked_to_stop_it_keeps_what_it_has_and_goes_on(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    arguments = ("steps=60", "checkpoint.every=1000")
    process = start(command(1, data[1], model, tmp_path / "out", *arguments))
    log = tmp_path / "out/metrics.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, errors = ended(process)
    assert status == 0, errors
    assert "asked to stop: step" in errors
    done = max(losses(tmp_path / "out"))
    assert done < 60
    assert main(command(1, data[1], model, tmp_path / "out", *arguments)) == 0
    assert [*losses(tmp_path / "out")] == [*range(1, 61)]


@pytest.mark.slow  # test_parallel.py has four ranks in the fast suite
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_four_ranks_are_one(stage: int, model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    arguments = ("steps=20", "checkpoint.every=10", "optim.lr=3e-4")
    assert main(command(stage, data[stage], model, tmp_path / "one", *arguments)) == 0
    status, errors = ended(start(command(stage, data[stage], model, tmp_path / "four", *arguments), 4))
    assert status == 0, errors
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, four = tensors(tmp_path / "one/model"), tensors(tmp_path / "four/model")
    for name, tensor in one.items():
        assert torch.allclose(tensor, four[name], rtol=1e-3, atol=1e-4), name
    # The four ranks' checkpoint of the middle, on one rank.
    shutil.rmtree(tmp_path / "four/checkpoints/step-00000020")
    shutil.rmtree(tmp_path / "four/model")
    assert main(command(stage, data[stage], model, tmp_path / "four", *arguments)) == 0
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_an_ended_run_says_where_its_model_is(
    model: Path, data: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(1, data[1], model, tmp_path / "out", "steps=2")
    assert main(arguments) == 0
    before = (tmp_path / "out/metrics.jsonl").read_text()
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"model: {tmp_path / 'out/model'}\n" * 2
    assert (tmp_path / "out/metrics.jsonl").read_text() == before
