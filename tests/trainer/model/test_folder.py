"""Model folders: what is written comes back bit by bit, opens in transformers, and tells what is wrong with it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.small_disk import small_disk
from tests.trainer.models import model, packed, pictures, sample, save_model, tokenizer
from trainer.errors import ModelError
from trainer.model.folder import load_config, load_model, named_tensors, read_tensors, write_model
from trainer.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "kept"
    save_model(model(), tokenizer(), folder)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "model"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 60_000])
def test_it_comes_back_bit_by_bit(
    tied: bool, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.weights.SHARD_BYTES", shard_bytes)
    made = model(tie_word_embeddings=tied)
    with torch.no_grad():
        made.adapter.pos_embed += 0.25  # stored as it is, not made anew
    save_model(made, tokenizer(), tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert back.config == made.config
    left, right = made.state_dict(), back.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)

    batch = packed([sample(random.Random(0), 1, 9)], pictures(1))
    assert torch.equal(made.logits(batch), back.logits(batch))
    assert tied == (back.language.lm_head.weight is back.language.get_input_embeddings().weight)
    assert load_tokenizer(tmp_path / "model" / "language").fingerprint == tokenizer().fingerprint
    assert len(files(tmp_path / "model")) > (10 if shard_bytes == 60_000 else 4)


def test_the_language_part_opens_in_transformers(kept: Path) -> None:
    made = model()
    opened = AutoModelForCausalLM.from_pretrained(kept / "language")
    ids = torch.arange(3, 23)[None]
    made.language.set_attn_implementation("sdpa")
    assert type(opened).__name__ == "Qwen2ForCausalLM"
    assert opened.dtype == torch.float32
    assert torch.allclose(opened(ids).logits, made.language(ids).logits, atol=1e-5)


def test_the_same_model_gives_the_same_bytes(kept: Path, tmp_path: Path) -> None:
    save_model(model(), tokenizer(), tmp_path / "again")
    assert files(tmp_path / "again") == files(kept)


def test_positions_keep_their_kind_when_weights_are_cast(kept: Path) -> None:
    back = load_model(kept, torch.bfloat16)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}
    assert back.adapter.pos_embed.dtype == torch.float32
    assert all(buffer.dtype == torch.float32 for buffer in back.language.buffers())


def test_tensors_are_read_one_by_one(kept: Path) -> None:
    names = [name for name, _ in read_tensors(kept)]
    assert sorted(names) == sorted(named_tensors(model()))
    assert "language.lm_head.weight" not in names


def test_what_stands_is_not_written_over(folder: Path) -> None:
    before = files(folder)
    with pytest.raises(ModelError, match=r"model: there is something already: name a new or an empty folder$"):
        save_model(model(), tokenizer(), folder)
    assert files(folder) == before


def test_a_folder_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    made = model()

    def breaking():  # type: ignore[no-untyped-def]
        for number, item in enumerate(named_tensors(made).items()):
            if number == 30:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "model", made.config, breaking(), tokenizer())
    with pytest.raises(ModelError, match=r"no complete model folder: config.json"):
        load_config(tmp_path / "model")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "256k") as disk,
        pytest.raises(ModelError, match=r"cannot be written: .*") as told,
    ):
        save_model(model(), tokenizer(), disk / "model")
    assert "\n" not in str(told.value)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing: there is no such folder: make one with"):
        load_model(tmp_path / "nothing")


def test_a_configuration_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(ModelError, match=r"configuration of another kind of model: turn it into a model folder"):
        load_model(folder)


def test_a_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: no JSON: "):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "values", "line"),
    [
        ("config.json", {"adapter": {"queries": 15, "heads": 4}}, r"config.json: adapter: queries 15 is no square"),
        ("config.json", {"image_token": 10**9}, r"image_token 1000000000 is none of language.vocab_size"),
        ("language/config.json", {"hidden_size": 0}, r"language.hidden_size is missing, or no whole number above 0"),
        ("language/config.json", {"vocab_size": None}, r"language.vocab_size is missing, or no whole number above 0"),
        ("language/config.json", {"num_attention_heads": 0}, r"configuration: ZeroDivisionError"),
        ("language/config.json", {"num_key_value_heads": 0}, r"configuration: ZeroDivisionError"),
    ],
)
def test_a_wrong_number_is_named(folder: Path, file: str, values: dict[str, object], line: str) -> None:
    change(folder / file, **values)
    with pytest.raises(ModelError, match=line):
        load_model(folder)


@pytest.mark.parametrize("placed", [{}, [], {"a": 3}, {"a": 3, "b": "x"}, {"a": ["x"]}, {"a": "../x"}, {"a": "/x"}])
def test_an_index_names_files_of_its_own_folder(folder: Path, placed: object) -> None:
    path = folder / "language" / "model.safetensors.index.json"
    shutil.copy(folder / "language" / "model.safetensors", folder / "x")
    path.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(ModelError, match=r"index.json: weight_map"):
        load_model(folder)


def test_a_loaded_model_is_no_longer_its_files(folder: Path) -> None:
    back = load_model(folder)
    before = {name: tensor.clone() for name, tensor in back.state_dict().items()}
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:  # the same file, as `cp` writes
            file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in back.state_dict().items())


@pytest.mark.parametrize("file", ["vision.safetensors", "language/model.safetensors"])
def test_a_file_that_is_missing_or_cut(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-100])
    with pytest.raises(ModelError, match=rf"{file}: is damaged, or no checkpoint of tensors: "):
        load_model(folder)
    (folder / file).unlink()
    with pytest.raises(ModelError, match=rf"{Path(file).parent.name}: there is no {Path(file).name} or "):
        load_model(folder)


def test_a_shard_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.weights.SHARD_BYTES", 60_000)
    save_model(model(), tokenizer(), tmp_path / "model")
    gone = sorted((tmp_path / "model").glob("vision-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=rf"{gone.name}: is missing"):
        load_model(tmp_path / "model")


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "vision.safetensors"
    good = load_file(path)
    save_file({**good, "adapter.query": torch.zeros(9, 64)}, path)
    with pytest.raises(
        ModelError, match=r"adapter.query: its shape is \[9, 64\], the configuration asks for \[16, 64\]$"
    ):
        load_model(folder)
    save_file({**good, "adapter.more": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"adapter.more: this model has no such tensor \(1 in all\)$"):
        load_model(folder)
    save_file({name: tensor for name, tensor in good.items() if name != "adapter.query"}, path)
    with pytest.raises(ModelError, match=r"model: adapter.query is missing \(1 of [0-9]+ tensors\)$"):
        load_model(folder)
