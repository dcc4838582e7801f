"""What a user can get wrong, and what a disk can do to a run: one line that says what, where and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from demo.language import train_bpe
from shards.schema import Caption, dump_sample
from shards.storage import Storage
from shards.tar import build_shard
from tests.small_disk import small_disk
from tests.trainer.models import model as small_model
from tests.trainer.models import save_model, tokenizer
from tests.trainer.training import command, data_set, ended, losses, model_folder, start
from trainer.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("data") / "captions", ("caption",), 40)


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(data, tmp_path / "data"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    assert main([*arguments]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    return said[0].removeprefix("error: ")


def test_no_data(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "manifest.json: not found" in refused(capsys, *command(1, tmp_path / "nowhere", model, tmp_path / "out"))
    line = refused(capsys, *command(1, tmp_path, model, tmp_path / "out", "data.manifests=[]"))
    assert "no data set is named: --data MANIFEST..." in line


def test_a_missing_shard(model: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_data / "001.tar").unlink()
    line = refused(capsys, *command(1, own_data, model, tmp_path / "out"))
    assert "001.tar is missing" in line
    assert str(own_data) in line


def test_a_manifest_that_does_not_match(
    model: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_data / "001.tar").write_bytes((own_data / "000.tar").read_bytes())
    assert "001.tar has" in refused(capsys, *command(1, own_data, model, tmp_path / "out"))


def test_a_model_folder_that_is_none(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no such folder" in refused(capsys, *command(1, data, tmp_path / "none", tmp_path / "out"))
    cut = Path(shutil.copytree(model, tmp_path / "cut"))
    (cut / "vision.safetensors").write_bytes((cut / "vision.safetensors").read_bytes()[:-10])
    assert "vision.safetensors: is damaged" in refused(capsys, *command(1, data, cut, tmp_path / "out"))


def test_a_model_that_would_be_written_over_itself(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    assert "would be written over --init-from" in refused(capsys, *command(1, data, own, tmp_path))
    assert (own / "config.json").exists()


def test_the_tokenizer_of_another_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_model(), train_bpe(["another text altogether"], 300), tmp_path / "model")
    line = refused(capsys, *command(1, data, tmp_path / "model", tmp_path / "out"))
    assert "the tokenizer is another model's" in line


@pytest.mark.slow
def test_more_ranks_than_lanes(model: Path, data: Path, tmp_path: Path) -> None:
    arguments = command(1, data, model, tmp_path / "out", "data.lanes=1", "batch.size=2")
    status, errors = ended(start(arguments, 2))
    assert status != 0
    assert "2 ranks for data.lanes=1: every rank needs a lane of its own" in errors


def test_a_checkpoint_of_another_run(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(1, data, model, out, "steps=4", "checkpoint.every=2")) == 0
    arguments = command(1, data, model, out, "steps=4", "checkpoint.every=2")
    assert "optim.lr 0.001 there, 0.002 here" in refused(capsys, *arguments, "optim.lr=2e-3")
    assert "there are checkpoints: name another --out" in refused(capsys, *arguments, "checkpoint.resume=none")
    assert "no checkpoint of step 3: there are 2, 4" in refused(capsys, *arguments, "checkpoint.resume=3")
    other = model_folder(tmp_path / "other", seed=1)
    assert "made with another model" in refused(capsys, *command(1, data, other, out, "steps=4"))
    strange = data_set(tmp_path / "strange", ("caption",), 40, seed=1)
    line = refused(capsys, *command(1, strange, model, out, "steps=4"))
    assert "data.manifests" in line or "made with another data" in line


def test_the_same_data_changed_under_a_run(
    model: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(1, own_data, model, tmp_path / "out", "steps=2")) == 0
    shutil.rmtree(own_data)
    data_set(own_data, ("caption",), 40, seed=1)
    line = refused(capsys, *command(1, own_data, model, tmp_path / "out", "steps=2"))
    assert "made with another data" in line


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint(
    how: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = command(1, data, model, out, "steps=4", "checkpoint.every=2")
    assert main(arguments) == 0
    shutil.rmtree(out / "model")
    file = next((out / "checkpoints/step-00000004").glob("*.distcp"))
    held = bytearray(file.read_bytes())
    if how == "flipped":
        held[len(held) // 2] ^= 1
    file.write_bytes(held if how == "flipped" else held[:-100])
    line = refused(capsys, *arguments)
    assert file.name in line
    # The one before it stands: the line's reader can go on from there.
    assert main([*arguments, "checkpoint.resume=2"]) == 0


def test_no_supervised_token_in_a_step(model: Path, tmp_path: Path) -> None:
    """Samples that all are too long weigh nothing: nothing changes, nothing is NaN, the run goes on."""
    data = data_set(tmp_path / "long", ("caption",), 12)
    assert main(command(1, data, model, tmp_path / "out", "data.length=20", "steps=3")) == 0
    before, after = (dict(torch_state(folder)) for folder in (model, tmp_path / "out/model"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert sum(line["data/too_long"] for line in told(tmp_path / "out")) == 12 + 8


def torch_state(folder: Path) -> list[tuple[str, torch.Tensor]]:
    from trainer.model.folder import read_tensors

    return [(name, tensor.clone()) for name, tensor in read_tensors(folder)]


def told(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_nan_in_the_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = small_model()
    with torch.no_grad():
        broken.projection.proj[0, 0] = float("nan")
    save_model(broken, tokenizer(), tmp_path / "model")
    line = refused(capsys, *command(1, data, tmp_path / "model", tmp_path / "out", "steps=9", "optim.nonfinite=3"))
    assert line.startswith("3 steps in a row up to step 3 had a gradient that is no finite number and changed nothing")


def test_broken_samples_are_counted_until_they_are_too_many(
    model: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [(f"{n:05d}", [("jpg", b"no picture"), ("json", dump_sample(Caption(text="a text")))]) for n in range(12)]
    shard, storage = build_shard(samples), Storage.open(str(own_data))
    storage.write("000.tar", b"".join(shard.buffers))
    manifest = json.loads((own_data / "manifest.json").read_text())
    from shards.index import write_index

    write_index(storage, "000.tar", shard.offsets)
    manifest["total_bytes"] += shard.size - manifest["shardlist"][0]["filesize"]
    manifest["shardlist"][0] |= {"filesize": shard.size, "sha256": shard.sha256}
    (own_data / "manifest.json").write_text(json.dumps(manifest))
    line = refused(capsys, *command(1, own_data, model, tmp_path / "out", "steps=10"))
    assert "samples are broken, over data.bad=0.01: most in 000.tar" in line or "000.tar" in line
    assert main(command(1, own_data, model, tmp_path / "other", "steps=10", "data.bad=0.5")) == 0
    assert sum(each.get("data/bad", 0) for each in told(tmp_path / "other")) > 0


def test_a_full_disk_while_a_checkpoint_is_written(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        arguments = command(
            1, data, model, tmp_path / "out", "steps=8", "checkpoint.every=2", f"checkpoint.folder={disk}/kept"
        )
        filler = disk / "filler"
        line = refused(capsys, *arguments)
        assert "No space left" in line or "full" in line
        assert str(disk) in line
        filler.unlink(missing_ok=True)
    assert losses(tmp_path / "out")
