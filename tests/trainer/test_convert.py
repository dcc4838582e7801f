"""The command at small size: released folders in and out, bit for bit; open_clip's and transformers' own models together."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import trainer.tokenizer
from tests.trainer import models, restated
from tests.trainer.commands import help_of
from tests.trainer.restated import random_released, released_shapes, save_released, small_config
from trainer import transfer
from trainer.convert import main
from trainer.data.batch import Encoded, pack
from trainer.data.images import MEAN, STD
from trainer.model.folder import load_config, load_model

CONFIG = small_config()
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _bytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary file of 256 ranks, single bytes, is a whole one; the special ids follow it."""
    monkeypatch.setattr(trainer.tokenizer, "QWEN_RANKS", 256)


def vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [b"%b %d" % (base64.b64encode(bytes([rank])), rank) for rank in range(256)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")


def released(folder: Path, weights: dict[str, Tensor] | None = None, **options: Any) -> dict[str, Tensor]:
    weights = weights or random_released(CONFIG, 0)
    save_released(weights, CONFIG, folder, **options)
    vocabulary(folder)
    return weights


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.rglob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].equal(other[key]) for key in one
    )


def refusal(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command ends."""
    capfd.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_to_ours_to_released_to_ours_is_equal_to_the_bit(
    tmp_path: Path, kind: Literal["safetensors", "bin"], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {key: tensor.to(dtype) for key, tensor in random_released(CONFIG, 1).items()}
    released(tmp_path / "a", weights, kind=kind, shards=3)
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "ours")]) == 0
    # Shards so small that q, k and v come from different files.
    with monkeypatch.context() as small:
        small.setattr("trainer.weights.SHARD_BYTES", 200_000)
        transfer.import_released(tmp_path / "a", tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "language").glob("model-*.safetensors"))) > 5
    for ours in ("ours", "parts"):
        assert main(["export", str(tmp_path / ours), str(tmp_path / f"{ours}-b")]) == 0
        assert same(tensors(tmp_path / f"{ours}-b"), weights)
        assert main(["import", str(tmp_path / f"{ours}-b"), str(tmp_path / f"{ours}-c")]) == 0
        assert same(tensors(tmp_path / f"{ours}-c"), tensors(tmp_path / ours))
        assert load_config(tmp_path / f"{ours}-c") == load_config(tmp_path / "ours")


def test_an_export_in_shards_has_an_index_with_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = released(tmp_path / "a")
    transfer.import_released(tmp_path / "a", tmp_path / "ours")
    monkeypatch.setattr("trainer.weights.SHARD_BYTES", 1_000_000)
    transfer.export(tmp_path / "ours", tmp_path / "b")
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    assert index["weight_map"].keys() == weights.keys()
    assert len(set(index["weight_map"].values())) > 1
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("size", [224, 448])
def test_an_imported_model_gives_the_published_computation_s_logits(tmp_path: Path, size: int) -> None:
    weights = released(tmp_path / "a")
    transfer.import_released(tmp_path / "a", tmp_path / "ours")
    model = load_model(tmp_path / "ours")
    image = [CONFIG.image_start_id, *[CONFIG.image_start_id + 2] * 256, CONFIG.image_start_id + 1]
    ids = (*image, 5, 6, 7, *image, 8, 9)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    sample = Encoded(ids, (False,) * len(ids), 2, "vqa")
    batch = pack([sample], list(pixels), size, CONFIG.image_start_id + 2, 256)
    with torch.no_grad():
        expected = restated.logits(weights, torch.tensor([ids]), pixels, CONFIG)[0]
        assert (model.logits(batch) - expected).abs().max() < 1e-4


def test_dtype_casts_weights_and_leaves_the_table_of_positions(tmp_path: Path) -> None:
    weights = released(tmp_path / "a")
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "ours"), "--dtype", "bf16"]) == 0
    ours = tensors(tmp_path / "ours")
    assert ours.pop("adapter.pos_embed").equal(weights["transformer.visual.attn_pool.pos_embed"])
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    assert ours["lm_head.weight"].equal(weights["lm_head.weight"].bfloat16())


def test_known_buffers_are_left_out_and_an_unknown_tensor_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = {"transformer.rotary_emb.inv_freq": torch.ones(8), "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    weights = random_released(CONFIG, 0)
    released(tmp_path / "a", weights | extra)
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "ours")]) == 0
    released(tmp_path / "b", weights | {"transformer.h.0.attn.lora_a": torch.ones(2)})
    line = refusal(capfd, "import", tmp_path / "b", tmp_path / "no")
    assert "transformer.h.0.attn.lora_a: this model has no such tensor (1 in all)" in line
    assert not (tmp_path / "no").exists()


def test_a_missing_tensor_and_another_shape_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = random_released(CONFIG, 0)
    key = "transformer.visual.transformer.resblocks.1.attn.in_proj.bias"
    released(tmp_path / "a", {name: tensor for name, tensor in weights.items() if name != key})
    assert f"{key} is missing (1 of " in refusal(capfd, "import", tmp_path / "a", tmp_path / "no")
    key = "transformer.h.1.attn.c_attn.weight"
    released(tmp_path / "b", weights | {key: weights[key][:-1]})
    line = refusal(capfd, "import", tmp_path / "b", tmp_path / "no")
    assert f"{key}: its shape is [767, 256], the configuration asks for [768, 256]" in line
    assert not (tmp_path / "no").exists()


def test_other_folders_are_refused_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, a = tmp_path / "ours", tmp_path / "a"
    assert "cannot be read" in refusal(capfd, "import", tmp_path / "nowhere", ours)
    released(a)
    (a / "qwen.tiktoken").unlink()
    assert "qwen.tiktoken: cannot be read: No such file or directory: the released layout knows no other" in refusal(
        capfd, "import", a, ours
    )
    vocabulary(a)
    values = json.loads((a / "config.json").read_text())
    (a / "config.json").write_text(json.dumps(values | {"model_type": "qwen2_vl"}))
    assert "model_type is 'qwen2_vl'" in refusal(capfd, "import", a, ours)
    (a / "config.json").write_text("{")
    assert "no JSON" in refusal(capfd, "import", a, ours)
    (a / "config.json").write_text(json.dumps(values))
    ours.mkdir()
    (ours / "notes.txt").write_text("mine")
    assert "there is something already" in refusal(capfd, "import", a, ours)
    assert "config.json" in refusal(capfd, "export", a, tmp_path / "no")


def test_a_model_of_another_vocabulary_or_shape_is_not_exported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.trainer.models import save_model

    save_model(models.model(), models.tokenizer(), tmp_path / "small")
    line = refusal(capfd, "export", tmp_path / "small", tmp_path / "no")
    assert "the language model: num_key_value_heads is 2: the released layout holds only 4" in line


def clip_config(**vision: Any) -> dict[str, Any]:
    tower = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, **vision}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}


def clip(folder: Path, name: str = "open_clip_model.safetensors", **config: Any) -> open_clip.CLIP:
    folder.mkdir(parents=True, exist_ok=True)
    values = clip_config() | config
    torch.manual_seed(3)
    model = open_clip.CLIP(**values).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values, "preprocess_cfg": {}}))
    path = folder / name
    save_file(model.state_dict(), path) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
    return model


def qwen2(folder: Path, rows: int = 400, tied: bool = True) -> Qwen2ForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(4)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, num_key_value_heads=2, tie_word_embeddings=tied, **sizes))
    model.save_pretrained(folder)
    models.tokenizer().save(folder)
    return model.eval()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_assembled_tower_is_open_clip_s_blocks_without_the_class_token(
    tmp_path: Path, name: str, quick_gelu: bool
) -> None:
    theirs = clip(tmp_path / "clip", name, quick_gelu=quick_gelu).visual
    qwen2(tmp_path / "lm")
    out = tmp_path / "out"
    assert main(["assemble", "--vision", f"{tmp_path / 'clip'}", "--language", f"{tmp_path / 'lm'}", f"{out}"]) == 0
    ours = load_model(out)
    assert load_config(out).name == "clip+lm"
    assert load_config(out).image_size == 32
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = theirs.conv1(pixels).flatten(2).transpose(1, 2) + theirs.positional_embedding[1:]
        expected = theirs.transformer(theirs.ln_pre(x))
        assert (ours.vision(pixels) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_an_assembled_language_part_is_transformers_own_folder_with_a_grown_vocabulary(
    tmp_path: Path, tied: bool
) -> None:
    clip(tmp_path / "clip")
    rows = models.tokenizer().size - 7
    before = qwen2(tmp_path / "lm", rows, tied)
    arguments = ["--vision", str(tmp_path / "clip"), "--language", str(tmp_path / "lm"), "--queries", "16"]
    assert main(["assemble", *arguments, str(tmp_path / "out")]) == 0
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "language").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "language")) == rows + 7
    assert isinstance(after, Qwen2ForCausalLM)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert after(ids).logits[..., :rows].equal(before(ids).logits)
    for old, new in [(before.model.embed_tokens, after.model.embed_tokens), (before.lm_head, after.lm_head)]:
        assert new.weight[:rows].equal(old.weight)
        assert torch.allclose(new.weight[rows:], old.weight.mean(0).expand(7, -1), atol=1e-7)
    model = load_model(tmp_path / "out")  # with the check for packing
    assert model.encode_images(torch.randn(1, 3, 32, 32)).shape == (1, 16, 64)


def test_the_seed_decides_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    clip(tmp_path / "clip")
    qwen2(tmp_path / "lm")
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        torch.manual_seed(ord(name))
        state = torch.get_rng_state()
        transfer.assemble(str(tmp_path / "clip"), tmp_path / "lm", tmp_path / name, queries=16, seed=seed)
        assert torch.get_rng_state().equal(state)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    a, c = tensors(tmp_path / "a"), tensors(tmp_path / "c")
    drawn = {name for name in a if not a[name].equal(c[name])}
    assert drawn == {"adapter.query", "adapter.kv_proj.weight", "adapter.attn.in_proj_weight"} | {
        "adapter.attn.out_proj.weight",
        "projection.proj",
    }


def test_a_llama_in_torch_s_own_files_and_a_weights_file_of_the_tower(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "clip")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=512, **sizes)).bfloat16()
    llama.config.save_pretrained(tmp_path / "lm")
    torch.save(llama.state_dict(), tmp_path / "lm" / "pytorch_model.bin")
    models.tokenizer().save(tmp_path / "lm")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    arguments = ["assemble", "--vision", file, "--language", tmp_path / "lm", "--queries", "16", tmp_path / "out"]
    assert "--vision-config is needed" in refusal(capfd, *arguments)
    assert "open_clip has no model of this name" in refusal(capfd, *arguments, "--vision-config", "ViT-nope")
    line = refusal(capfd, *arguments, "--vision-config", "ViT-bigG-14")
    assert "visual.transformer.resblocks.10.attn.in_proj_bias is missing" in line
    config = ["--vision-config", tmp_path / "clip" / "open_clip_config.json", "--vision-eps", "1e-6"]
    config += ["--image-size", "64", "--adapter-heads", "4"]
    assert main([str(argument) for argument in [*arguments, *config]]) == 0
    made = load_config(tmp_path / "out")
    assert (made.vision.eps, made.vision.image_size, made.image_size, made.adapter.heads) == (1e-6, 32, 64, 4)
    language = load_model(tmp_path / "out").language
    assert language.lm_head.weight.equal(llama.lm_head.weight)
    assert language.dtype == torch.bfloat16


def test_a_qwen_7b_is_assembled_into_what_the_released_layout_holds(tmp_path: Path) -> None:
    weights = released(tmp_path / "lm")
    values = json.loads((tmp_path / "lm" / "config.json").read_text())
    del values["visual"]
    (tmp_path / "lm" / "config.json").write_text(json.dumps(values))
    for file in [*(tmp_path / "lm").glob("*.safetensors"), *(tmp_path / "lm").glob("*.index.json")]:
        file.unlink()
    text = {key: tensor for key, tensor in weights.items() if ".visual." not in key}
    save_file(text, tmp_path / "lm" / "model.safetensors")
    clip(tmp_path / "clip", **clip_config(image_size=128))
    transfer.assemble(str(tmp_path / "clip"), tmp_path / "lm", tmp_path / "ours", vision_eps=1e-6)
    transfer.export(tmp_path / "ours", tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert same({key: tensor for key, tensor in back.items() if ".visual." not in key}, text)
    # The exported tower, in the published computation, is open_clip's.
    config = restated.Config(256, 2, 4, 176, 512, 470, 32, 2, 2, 4.0, 8)
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == released_shapes(config)
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        ours = load_model(tmp_path / "ours").encode_images(pixels)
        assert (restated.visual(back, pixels, config) - ours).abs().max() < 1e-4


def test_what_cannot_be_assembled_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "clip")
    qwen2(tmp_path / "lm")
    out = tmp_path / "no"

    def line(vision: object = tmp_path / "clip", language: object = tmp_path / "lm", *more: object) -> str:
        text = refusal(capfd, "assemble", "--vision", vision, "--language", language, out, *more)
        assert not out.exists()
        return text

    assert "neither a folder, nor a weights file, nor a MODEL:TAG" in line("ViT-nope:laion")
    assert "neither a folder" in line(tmp_path / "nowhere")
    assert "cannot be read" in line(language=tmp_path / "nowhere")
    assert "queries 17 is no square" in line(tmp_path / "clip", tmp_path / "lm", "--queries", 17)
    assert "image_size 33 is no multiple of patch_size 8" in line(
        tmp_path / "clip", tmp_path / "lm", "--image-size", 33
    )
    released(tmp_path / "vl")
    assert "goes in by `import`" in line(language=tmp_path / "vl")
    clip(tmp_path / "pool", **clip_config(attentional_pool=True))
    assert "attentional_pool is True" in line(tmp_path / "pool")
    values = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(values | {"model_type": "gemma2"}))
    assert "model_type 'gemma2'" in line()


CHILD = """
    import sys
    import trainer.tokenizer
    from pathlib import Path
    import shards.progress
    from trainer import transfer, weights

    def peak():  # ru_maxrss would begin with the parent's
        return next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

    trainer.tokenizer.QWEN_RANKS = 256
    shards.progress.LINE_EVERY = 0
    small, large, out, shard = *map(Path, sys.argv[1:4]), int(sys.argv[4])
    transfer.import_released(small, out / "small")
    transfer.export(out / "small", out / "small-back")
    peaks = [peak()]
    weights.SHARD_BYTES = shard
    transfer.import_released(large, out / "large")
    peaks.append(peak())
    transfer.export(out / "large", out / "back")
    print(*peaks, peak())
"""


def test_a_conversion_holds_a_shard_and_not_the_model(tmp_path: Path) -> None:
    """In from torch's files, out from safetensors; 240 MB through shards of 30 MB."""
    large = restated.Config(256, 17, 2, 4096, 512, 470, 48, 1, 4)
    weights = {key: torch.zeros(shape) for key, shape in released_shapes(large).items()}
    size = sum(tensor.nbytes for tensor in weights.values())
    assert size > 230e6
    save_released(weights, large, tmp_path / "large", kind="bin", shards=8)
    vocabulary(tmp_path / "large")
    released(tmp_path / "small", kind="bin")
    del weights
    arguments = [sys.executable, "-c", textwrap.dedent(CHILD), *(str(tmp_path / n) for n in ("small", "large", "out"))]
    arguments.append("30000000")
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    before, between, after = (int(number) * 1024 for number in done.stdout.split())
    assert between - before < size / 3
    assert after - before < size / 3
    lines = [line for line in done.stderr.splitlines() if line.startswith("import: ")]
    assert re.fullmatch(r"import: (\d+)/\1", lines[-1])


def test_a_conversion_that_is_killed_leaves_no_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(tmp_path / "a")
    real = transfer._cast

    def stopped(*arguments: Any) -> Any:
        for number, item in enumerate(real(*arguments)):
            if number == 40:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(transfer, "_cast", stopped)
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "ours")]) == 130
    assert (tmp_path / "ours").exists()
    assert not (tmp_path / "ours" / "config.json").exists()


def test_help_answers_at_once_with_an_example() -> None:
    assert "python -m trainer.convert assemble --vision " in help_of("trainer.convert", "assemble")


def test_weights_that_learnt_from_images_normalised_otherwise_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pixels are made with CLIP's mean and deviation, whatever the tower."""
    clip(tmp_path / "clip")
    qwen2(tmp_path / "lm")
    path = tmp_path / "clip" / "open_clip_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    arguments = ["assemble", "--vision", tmp_path / "clip", "--language", tmp_path / "lm", "--queries", 16]
    assert "its images have mean [0.5, 0.5, 0.5], not CLIP's" in refusal(capfd, *arguments, tmp_path / "no")
    path.write_text(json.dumps(values | {"preprocess_cfg": {"mean": list(MEAN), "std": list(STD)}}))
    assert main([str(argument) for argument in (*arguments, tmp_path / "out")]) == 0
