from __future__ import annotations

import json
import math
import os
import pty
import random
import sys
import termios
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shards import progress
from tests.small_disk import small_disk
from tests.trainer import models
from trainer.config import Log as LogSettings
from trainer.config import TrainConfig, load_config
from trainer.data.batch import TASKS, Batch, fill_up
from trainer.devices import DEVICES
from trainer.metrics import Log, Meter, Tally
from trainer.parallel import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
QUIET = LogSettings(tensorboard=False)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_call_is_a_line_of_strict_json_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "new/out", QUIET, 100, 0)
    log.step(10, {"loss": 2.5, "lr": 1e-4})
    assert read(tmp_path / "new/out/metrics.jsonl") == [{"step": 10, "loss": 2.5, "lr": 1e-4}]
    log.step(20, {"loss": math.nan, "grad_norm": math.inf})
    log.step(20, {"eval/loss": 1.25})
    log.text(20, [{"key": "7", "said": "红 </s>\n<box>"}, {"key": "8", "said": "\ud800"}])
    log.close()
    text = (tmp_path / "new/out/metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[1], parse_constant=pytest.fail) == {"step": 20, "loss": None, "grad_norm": None}
    assert read(tmp_path / "new/out/metrics.jsonl")[2] == {"step": 20, "eval/loss": 1.25}
    assert [line["said"] for line in read(tmp_path / "new/out/samples.jsonl")] == ["红 </s>\n<box>", "\ud800"]
    assert {line["step"] for line in read(tmp_path / "new/out/samples.jsonl")} == {20}


def test_other_ranks_write_and_show_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path / "out", LogSettings(), 100, 1)
    log.step(10, {"loss": 2.5})
    log.text(10, [{"key": "7"}])
    log.close()
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("step", "kept"), [(0, []), (5, [0]), (10, [0, 10, 10]), (25, [0, 10, 10, 20]), (30, [0, 10, 10, 20, 30])]
)
def test_a_run_that_goes_on_cuts_off_what_came_after(step: int, kept: list[int], tmp_path: Path) -> None:
    log = Log(tmp_path, QUIET, 100, 0)
    for at, values in (
        (0, {"a": 0.0}),
        (10, {"loss": 1.0}),
        (10, {"eval": 2.0}),
        (20, {"loss": 3.0}),
        (30, {"loss": 4.0}),
    ):
        log.step(at, values)
        log.text(at, [{"key": "x\u2028y\r"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')  # killed
    Log(tmp_path, QUIET, 100, 0, step).step(step + 1, {"loss": 9.0})
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [*kept, step + 1]
    assert [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == kept


def test_a_full_disk_is_told_once_and_lines_stand_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        log = Log(disk / "out", QUIET, 1000, 0)
        log.step(1, {"loss": 1.0})
        filling = disk / "filling"
        filling.write_bytes(bytes(48 * 1024))
        for step in range(2, 400):
            log.step(step, {f"some/name/{number}": number / 7 for number in range(20)})
        gone = read(disk / "out/metrics.jsonl")
        filling.unlink()
        log.step(400, {"loss": 2.0})
        log.text(400, [{"key": "a"}])
        after = read(disk / "out/metrics.jsonl")
    assert 1 < len(gone) < 399
    assert [line["step"] for line in gone] == [*range(1, len(gone) + 1)]
    assert after == [*gone, {"step": 400, "loss": 2.0}]
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "the log cannot be written" in errors
    assert "training goes on" in errors


def test_no_folder_can_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    log = Log(tmp_path / "out", QUIET, 10, 0)
    log.step(1, {"loss": 1.0})
    assert capfd.readouterr().err.count("cannot be written") == 1


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own thread says it too
def test_a_full_disk_ends_tensorboard_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    with small_disk(tmp_path / "disk", "64k") as disk:
        log = Log(disk / "out", LogSettings(), 1000, 0)
        for step in range(1, 200):
            log.step(step, {f"some/name/{number}": number / 7 for number in range(20)})
        log.close()
        assert read(disk / "out/metrics.jsonl")
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_tensorboard_gets_scalars_and_texts_and_forgets_what_was_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, LogSettings(), 100, 0)
    for step in (1, 2, 3):
        log.step(step, {"loss": float(step), "loss/caption": 2.0 * step})
    log.text(3, [{"key": "k7", "said": "<ref> a</ref>"}])
    log.close()
    log = Log(tmp_path, LogSettings(), 100, 0, 1)
    log.step(2, {"loss": 7.0})
    read_again = EventAccumulator(str(tmp_path / "tensorboard"))
    read_again.Reload()  # while the run still goes on
    assert [(event.step, event.value) for event in read_again.Scalars("loss")] == [(1, 1.0), (2, 7.0)]
    assert [event.step for event in read_again.Scalars("loss/caption")] == [1]
    log.text(2, [{"key": "k8", "said": "<ref> a</ref>"}])
    log.close()
    read_again.Reload()
    (shown,) = read_again.Tensors("samples/k8/text_summary")
    assert shown.tensor_proto.string_val[0][:4] == b"    "
    assert b"<ref> a</ref>" in shown.tensor_proto.string_val[0]


def test_without_tensorboard_one_line_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    log = Log(tmp_path, LogSettings(), 10, 0)
    log.step(1, {"a": 1.0})
    log.text(1, [{"key": "a"}])
    log.close()
    Log(tmp_path / "second", QUIET, 10, 0).step(1, {"a": 1.0})
    assert capfd.readouterr().err == "TensorBoard is not installed (pip install tensorboard): metrics.jsonl alone\n"
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    assert (tmp_path / "second/metrics.jsonl").exists()


def test_without_a_terminal_a_line_now_and_then(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, QUIET, 1000, 0, 400)
    log.step(410, {"loss": 2.5, "tokens/s": 12345.6})
    assert capfd.readouterr().err == ""  # ten seconds have not passed
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)
    time.sleep(0.2)
    log.step(450, {"loss": 2.25, "tokens/s": 12345.6})
    log.step(450, {"eval/loss": 2.25})
    line = capfd.readouterr().err
    assert line.startswith("step: 450/1,000, loss 2.2500, 12,346 tokens/s, 00:0")
    assert line.endswith(" left\n")
    assert line.count("\n") == 1


def test_on_a_terminal_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        log = Log(tmp_path, QUIET, 10, 0, 4)
        log.step(5, {"loss": 2.5, "tokens/s": 1234.0})
        time.sleep(0.2)
        log.step(10, {"loss": 1.5, "tokens/s": 1234.0})
        log.close()
    shown = b""
    with suppress(OSError):  # what a terminal gives behind its end
        while True:
            shown += os.read(master, 100_000)
    os.close(master)
    assert b"4/10" in shown
    assert b"10/10" in shown
    assert b"loss 1.5000, 1,234 tokens/s" in shown


def test_a_tally_is_the_mean_of_each_task() -> None:
    rng = random.Random(0)
    tally = Tally(ALONE.device)
    for _ in range(2):
        pairs = [(rng.random() * 5, rng.choice([0, 2, 8])) for _ in range(1000)]
        for start in range(0, 1000, 130):
            part = pairs[start : start + 130]
            tally.add(torch.tensor([loss for loss, _ in part]), torch.tensor([task for _, task in part]))
        tally.add(torch.empty(0), torch.empty(0, dtype=torch.long))
        wanted = {"loss": sum(loss for loss, _ in pairs) / 1000}
        for task in (0, 2, 8):
            own = [loss for loss, each in pairs if each == task]
            wanted[f"loss/{TASKS[task]}"] = sum(own) / len(own)
        assert tally.values(ALONE) == pytest.approx(wanted, rel=1e-6)
    assert tally.values(ALONE) == {}


def settings(*overrides: str) -> TrainConfig:
    return load_config(2, (), ("image_size=32", *overrides))


def samples(fillers: int = 0, tail: int = 0) -> tuple[Batch, Counter[str]]:
    """Two pictures and a text in three segments; fillers as the loader makes them."""
    rng = random.Random(0)
    made = [models.sample(rng, 1, 20), models.sample(rng, 1, 20), models.sample(rng, 0, 38)]
    filler = replace(models.sample(rng, 0, 1), weight=0)
    batch = models.packed([*made, *[filler] * fillers], models.pictures(2))
    tokens = sum(len(each.ids) for each in made)
    counts = Counter(tokens=tokens, images=2, samples=3, supervised=len(batch.taught), fillers=fillers)
    return (fill_up(batch, len(batch.input_ids) + tail, 4, 0) if tail else batch), counts


class Clock:
    """The meter's clock, which goes on when it is told to: on the machine's own, a busy moment would be a wrong speed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("trainer.metrics.time", SimpleNamespace(perf_counter=lambda: self.now))

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_speed_is_of_what_is_trained_on_and_padding_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(settings(), models.config(), ALONE)
    batch, counts = samples(fillers=4, tail=38)
    for _ in range(3):
        meter.add(batch, counts, torch.full([len(batch.taught)], 1.5))
    with meter.spending("data"):
        clock.passes(0.25)
    with meter.spending("evaluation"):
        clock.passes(4)
    clock.passes(0.5)
    told = meter.values()
    assert told["loss"] == 1.5
    assert told["tokens/s"] == pytest.approx(3 * 114 / 0.75)
    assert told["images/s"] == pytest.approx(6 / 0.75)
    assert told["samples/s"] == pytest.approx(9 / 0.75)
    assert told["data_wait"] == pytest.approx(0.25 / 0.75)
    assert told["padding"] == pytest.approx(42 / 156)
    assert told["data/fillers"] == 12
    assert not {"mfu", "device_bytes"} & told.keys()
    clock.passes(1)
    again = meter.values()
    assert again["tokens/s"] == again["padding"] == again["data_wait"] == 0
    assert "loss" not in again


@pytest.mark.parametrize(
    ("trains", "factors"),
    [
        (["vision", "adapter"], {"vision": 3, "adapter": 3, "projection": 3, "language": 2}),
        (["vision", "adapter", "language"], {"vision": 3, "adapter": 3, "projection": 3, "language": 3}),
        (["adapter", "language"], {"vision": 1, "adapter": 3, "projection": 2, "language": 3}),
        (["language"], {"vision": 1, "adapter": 1, "projection": 1, "language": 3}),
    ],
)
def test_mfu_against_a_reckoning_by_hand(
    trains: list[str], factors: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEVICES, "cpu", (1, 1e9))
    model, run = models.config(), settings(f"trains=[{', '.join(trains)}]")
    batch, counts = samples()
    clock = Clock(monkeypatch)
    meter = Meter(run, model, ALONE)
    meter.add(batch, counts, torch.zeros(len(batch.taught)))
    clock.passes(0.5)
    told = meter.values()
    peak = 0.5 * 1e9

    tower, wide, width, queries, patches = model.vision, model.vision.width, model.width, 16, 16
    vision = 3 * 8 * 8 * wide * patches + tower.layers * (12 * wide**2 * patches + 2 * patches**2 * wide)
    adapter = patches * (wide * width + 2 * width**2) + 2 * queries * width**2 + 2 * queries * patches * width
    heads, own = 4, width // 4  # two of which share their keys and values
    layer = width * heads * own * 2 + width * 2 * 2 * own + 3 * width * model.language["intermediate_size"]
    body = 114 * 2 * (layer + (38 + 1) / 2 * 2 * heads * own)
    head = counts["supervised"] * width * model.language["vocab_size"]
    parts = {
        "vision": 2 * vision,
        "adapter": 2 * adapter,
        "projection": 2 * queries * width**2,
        "language": body + head,
    }
    needed = sum(2 * factors[name] * flops for name, flops in parts.items())
    # Norms and biases are parameters, too, but no matrices: 0.6 % to 0.7 % here.
    assert told["mfu"] == pytest.approx(needed / peak, rel=0.01)


def test_an_unknown_device_or_precision_has_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mfu" not in Meter(settings(), models.config(), ALONE).values()
    monkeypatch.setitem(DEVICES, "cpu", (1, 1e9))
    assert Meter(settings(), models.config(), ALONE).values()["mfu"] == 0
    assert "mfu" not in Meter(settings("parallel.precision=float32"), models.config(), ALONE).values()
