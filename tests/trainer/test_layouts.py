"""Key maps and files: every name of the released layout is reached, rows go where they belong, bad files are refused."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.trainer import restated
from trainer import layouts
from trainer.errors import ModelError
from trainer.model.config import QWEN_VL, ModelConfig
from trainer.model.folder import named_tensors
from trainer.model.vlm import build_model
from trainer.weights import Checkpoint, Take, find_files

SPECIAL = {"eos": 151643, "img": 151857, "imgpad": 151859}


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(build_model(config, "meta")).items()}


def test_the_map_reaches_every_released_tensor_of_the_full_model_in_its_shape() -> None:
    released = restated.released_shapes(restated.Config())
    ours = shapes_of(QWEN_VL)
    taken = layouts.from_released(ours, 16)
    assert {key: take.shape for take in taken.values() for key in take.keys} == released
    back = layouts.to_released(ours, 16)
    assert back.keys() == released.keys()
    assert {name for take in back.values() for name in take.keys} == ours.keys()


def test_the_published_configuration_is_the_preset() -> None:
    config = restated.Config()
    values = restated.released_config(config)
    made = layouts.from_released_config(values, restated.released_shapes(config), SPECIAL, "config.json")
    assert made == QWEN_VL
    back = layouts.to_released_config(made)
    assert {key: values[key] for key in back if key in values} == {key: back[key] for key in back if key in values}
    assert layouts.from_released_config(back, restated.released_shapes(config), SPECIAL, "config.json") == made


def test_rows_per_head_and_rows_per_part_are_each_other_s_inverse() -> None:
    heads, width = 3, 4
    rows = torch.arange(heads * 3 * width)
    ours = layouts.part_major(rows, heads)
    # head h's part p, channel c stands at ((h * 3) + p) * width + c as released, at ((p * heads) + h) * width + c in ours.
    expected = [((h * 3) + p) * width + c for p in range(3) for h in range(heads) for c in range(width)]
    assert ours.tolist() == expected
    assert layouts.head_major(ours, heads).equal(rows)
    matrix = torch.randn(36, 5, dtype=torch.bfloat16)
    assert layouts.part_major(layouts.head_major(matrix, heads), heads).equal(matrix)
    assert layouts.part_major(matrix, heads)[:, 1].equal(layouts.part_major(matrix[:, 1], heads))


def test_new_rows_of_a_vocabulary_are_the_mean_of_the_old_ones() -> None:
    takes = {
        "language.model.embed_tokens.weight": Take(("wte",), (5, 2)),
        "language.model.norm.weight": Take(("n",), (2,)),
    }
    grown = layouts.grown(takes, 3)
    assert grown["language.model.embed_tokens.weight"].shape == (3, 2)
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 6.0]])
    made = grown["language.model.embed_tokens.weight"].make(table)
    assert made.tolist() == [*table.tolist(), [4.0, 4.0], [4.0, 4.0]]
    assert grown["language.model.norm.weight"] == takes["language.model.norm.weight"]


def test_rows_that_were_there_but_never_learnt_are_the_mean_of_the_others() -> None:
    """As in a Qwen2, whose table is longer than its vocabulary."""
    name = "language.model.embed_tokens.weight"
    table = torch.tensor([[0.0, 2], [4, 6], [90, 90]])
    made = layouts.grown({name: Take(("x",), (4, 2))}, 3, frozenset({2, 3}))[name].make(table)
    assert made.tolist() == [[0, 2], [4, 6], [2, 4], [2, 4]]
    assert table.tolist() == [[0, 2], [4, 6], [90, 90]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_bias": False}, "config.json: no_bias is False: the released layout holds only True"),
        ({"rotary_pct": 0.25}, "rotary_pct is 0.25"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"kv_channels": 64}, "kv_channels is 64: the released layout holds only 128"),
        ({"hidden_size": None}, "hidden_size is None: a whole number is needed"),
        ({"num_attention_heads": "32"}, "num_attention_heads is '32'"),
        ({"visual": None}, "visual is missing"),
        ({"vocab_size": 151000}, "vocab_size is 151000: <imgpad> is 151859"),
        ({"visual": {"output_dim": 2048}}, "visual: output_dim is 2048: the released layout holds only 4096"),
        ({"visual": {"image_start_id": 5}}, "visual: image_start_id is 5: the released layout holds only 151857"),
        ({"visual": {"heads": 0}}, "visual: heads is 0"),
        ({"visual": {"heads": 7}}, "config.json: vision: width 1664 is no multiple of heads 7"),
    ],
)
def test_a_released_configuration_that_is_not_the_published_computation_is_refused_by_key(
    change: dict[str, Any], message: str
) -> None:
    values = restated.released_config(restated.Config())
    if isinstance(change.get("visual"), dict):
        change = {"visual": {**values["visual"], **change["visual"]}}
    with pytest.raises(ModelError, match=re.escape(message)):
        layouts.from_released_config(values | change, {}, SPECIAL, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"language": {**QWEN_VL.language, "num_key_value_heads": 8}},
            "the language model: num_key_value_heads is 8: the released layout holds only 32",
        ),
        (
            {"language": {**QWEN_VL.language, "tie_word_embeddings": True}},
            "the language model: tie_word_embeddings is True",
        ),
        ({"language": {**QWEN_VL.language, "model_type": "llama"}}, "the language model: model_type is 'llama'"),
        ({"vision": QWEN_VL.vision.model_copy(update={"eps": 1e-5})}, "the tower: eps is 1e-05"),
        (
            {"vision": QWEN_VL.vision.model_copy(update={"image_size": 448})},
            "the tower: image_size is 448: the released layout holds only 224",
        ),
        (
            {"vision": QWEN_VL.vision.model_copy(update={"activation": "quick_gelu"})},
            "the tower: activation is 'quick_gelu'",
        ),
        ({"adapter": QWEN_VL.adapter.model_copy(update={"queries": 64})}, "the adapter: queries is 64"),
        (
            {"adapter": QWEN_VL.adapter.model_copy(update={"heads": 16})},
            "the adapter: heads is 16: the released layout holds only 32",
        ),
    ],
)
def test_a_model_that_the_published_code_could_not_run_is_not_exported(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        layouts.to_released_config(QWEN_VL.model_copy(update=change))


WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(("index", "shards"), [(True, 1), (False, 1), (True, 2)])
def test_a_checkpoint_is_read_whole_with_and_without_index_and_in_shards(
    tmp_path: Path, kind: str, index: bool, shards: int
) -> None:
    names = ["model"] if shards == 1 else ["model-00001-of-00002", "model-00002-of-00002"]
    placed = {}
    for number, name in enumerate(names):
        part = WEIGHTS if shards == 1 else {key: WEIGHTS[key] for key in list(WEIGHTS)[number : number + 1]}
        file = tmp_path / f"{name}.{kind}"
        save_file(part, file) if kind == "safetensors" else torch.save(part, file)
        placed |= dict.fromkeys(part, file.name)
    if index:
        (tmp_path / f"model.{kind}.index.json").write_text(json.dumps({"weight_map": placed}))
    checkpoint = Checkpoint(tmp_path, ("x.", find_files(tmp_path, "model", "pytorch_model")))
    assert checkpoint.shapes == {"x.a": (2, 3), "x.b": (4,)}
    for key in ("x.b", "x.a", "x.b"):
        assert checkpoint.read(key).equal(WEIGHTS[key[2:]])


def shards(folder: Path) -> None:
    save_file({"a": WEIGHTS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": WEIGHTS["b"]}, folder / "model-00002-of-00002.safetensors")
    placed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def read(folder: Path) -> Checkpoint:
    return Checkpoint(folder, ("", find_files(folder, "model")))


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors: is missing"):
        read(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="there is no model.safetensors or model.bin"):
        read(tmp_path)


def test_a_tensor_that_only_the_index_has_is_missing(tmp_path: Path) -> None:
    shards(tmp_path)
    placed = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(ModelError, match=r": c is missing \(1 of 2 tensors\)"):
        read(tmp_path).check({"x": Take(("a",), (2, 3)), "z": Take(("c",), (4,))})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 3}}))
    with pytest.raises(ModelError, match="weight_map"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["../model.safetensors", "{folder}/model.safetensors"])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, file: str) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "in").mkdir()
    placed = dict.fromkeys(WEIGHTS, file.format(folder=tmp_path))
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(ModelError, match=r"weight_map: '.* is no file of this folder"):
        read(tmp_path / "in")


def test_a_table_of_a_damaged_checkpoint_without_rows_is_left_to_the_check_of_shapes() -> None:
    config = restated.Config()
    shapes = restated.released_shapes(config) | {"transformer.visual.positional_embedding": ()}
    assert layouts.from_released_config(restated.released_config(config), shapes, SPECIAL, "config.json") == QWEN_VL


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model.safetensors or model.bin"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("cut", [0, 5, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused_with_one_line(tmp_path: Path, kind: str, cut: float) -> None:
    path = tmp_path / f"model.{kind}"
    many = {f"t{number}": torch.randn(50, 20) for number in range(10)}
    save_file(many, path) if kind == "safetensors" else torch.save(many, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut if cut >= 1 else cut * len(content))])
    with pytest.raises(ModelError, match=rf"model.{kind}: is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    torch.save({"a": WEIGHTS["a"], "b": _Evil(target)}, tmp_path / "model.bin")
    with pytest.raises(
        ModelError, match=r"model.bin: is damaged, or more than tensors is in it: nothing of it was run"
    ):
        read(tmp_path)
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"a": _Evil(target)}))
    with pytest.raises(ModelError, match=r"model.bin: is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("content", [{"a": 3}, [1, 2], {"state": {"a": torch.ones(1)}}])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(ModelError, match="no tensor"):
        read(tmp_path)


def test_check_names_what_is_missing_unknown_or_of_another_shape(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    whole = {"x": Take(("a",), (2, 3)), "y": Take(("b",), (4,))}
    read(tmp_path).check(whole)
    with pytest.raises(ModelError, match=r": c is missing \(1 of [0-9]+ tensors\)"):
        read(tmp_path).check(whole | {"z": Take(("c",), (1,))})
    with pytest.raises(ModelError, match=r": b: this model has no such tensor \(1 in all\)"):
        read(tmp_path).check({"x": whole["x"]})
    read(tmp_path).check({"x": whole["x"]}, re.compile("^b$"))
    with pytest.raises(ModelError, match=re.escape(": a: its shape is [2, 3], the configuration asks for [3, 2]")):
        read(tmp_path).check(whole | {"x": Take(("a",), (3, 2))})


@pytest.mark.parametrize(
    ("key", "pattern", "left_out"),
    [
        ("transformer.h.3.attn.c_attn.bias", layouts.IGNORED, False),
        ("transformer.h.3.attn.bias", layouts.IGNORED, True),
        ("transformer.h.3.attn.masked_bias", layouts.IGNORED, True),
        ("transformer.rotary_emb.inv_freq", layouts.IGNORED, True),
        ("lm_head.weight", layouts.IGNORED, False),
        ("lm_head.weight", layouts.TIED_IGNORED, True),
        ("visual.proj", layouts.OPENCLIP_IGNORED, True),
        ("visual.class_embedding", layouts.OPENCLIP_IGNORED, True),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", layouts.OPENCLIP_IGNORED, False),
        ("visual.attn_pool.query", layouts.OPENCLIP_IGNORED, False),
        ("transformer.resblocks.0.ln_1.weight", layouts.OPENCLIP_IGNORED, True),
        ("logit_scale", layouts.OPENCLIP_IGNORED, True),
    ],
)
def test_only_known_buffers_and_parts_are_left_out(key: str, pattern: re.Pattern[str], left_out: bool) -> None:
    assert bool(pattern.search(key)) == left_out
