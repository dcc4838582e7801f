from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from filters.base import RuleError
from filters.clip_model import check, identity, load
from tests.filters.conftest import TinyClip


def test_loads_a_config_and_its_weights(tiny_clip: TinyClip) -> None:
    loaded = load(tiny_clip.config, tiny_clip.weights)
    assert loaded.side == 64
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.context_length == 32


def test_loads_a_folder(tiny_clip: TinyClip, tmp_path: Path) -> None:
    config = {"model_cfg": json.loads(Path(tiny_clip.config).read_text()), "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    folder = f"local-dir:{tmp_path}"
    with pytest.raises(RuleError, match="cannot be loaded"):  # never a model with random weights
        load(folder, "")
    shutil.copy(tiny_clip.weights, tmp_path / "model.pth")
    loaded = load(folder, "")
    assert loaded.side == 64
    assert list(loaded.model.visual.preprocess_cfg["mean"]) == [0.5, 0.5, 0.5]
    before = identity(folder, "")
    assert before == identity(folder, "")
    (tmp_path / "model.pth").write_bytes(b"other")
    assert identity(folder, "") != before


def test_identity_is_the_content_of_files(tiny_clip: TinyClip, tmp_path: Path) -> None:
    here = identity(tiny_clip.config, tiny_clip.weights)
    config, weights = tmp_path / "moved.json", tmp_path / "moved.pt"
    shutil.copy(tiny_clip.config, config)
    shutil.copy(tiny_clip.weights, weights)
    assert identity(str(config), str(weights)) == here
    assert set(here) == {"model", "pretrained"}
    with weights.open("ab") as file:
        file.write(b"\0")
    assert identity(str(config), str(weights)) != here


def test_identity_of_a_tag_has_the_version_of_open_clip() -> None:
    found = identity("ViT-B/32", "laion2b_s34b_b79k")
    assert (found["model"], found["pretrained"]) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert found["open_clip"][0].isdigit()


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23", "openai", r"open_clip has no model 'ViT-B-23'; did you mean 'ViT-B-32'\?"),
        ("zzz", "openai", "open_clip has no model 'zzz'$"),
        ("ViT-B-32", "missing/weights.pt", "CLIP weights 'missing/weights.pt': there is no such file"),
        ("ViT-B-32", "weights.safetensors", "there is no such file"),
        ("missing.json", "weights.pt", "CLIP model config 'missing.json': there is no such file"),
        ("local-dir:missing", "", "the folder 'missing' has no open_clip_config.json"),
    ],
)
def test_what_is_missing_is_said_without_torch(model: str, pretrained: str, message: str) -> None:
    for say in (check, identity, load):
        with pytest.raises(RuleError, match=message):
            say(model, pretrained)


def test_check_imports_no_torch() -> None:
    code = (
        "import sys; from filters.clip_score import ClipScore; rule = ClipScore(min=0.3); rule.check();"
        "rule.fingerprint(); assert not {'torch', 'open_clip', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "cannot be read: JSONDecodeError"),
        ("b.json", "[]", "needs the keys embed_dim, vision_cfg, text_cfg"),
        ("c.json", '{"embed_dim": 8}', "needs the keys"),
        ("d.json", '{"embed_dim": 8, "vision_cfg": 1, "text_cfg": {}}', "are mappings"),
        ("ViT-B-32.json", '{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}', "rename the file"),
    ],
)
def test_broken_configs(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RuleError, match=message):
        check(str(tmp_path / name), "weights.pt")


def test_a_config_needs_a_weights_file(tiny_clip: TinyClip) -> None:
    with pytest.raises(RuleError, match="`pretrained` must be a weights file"):
        check(tiny_clip.config, "openai")


def test_multilingual_models_need_transformers() -> None:
    if importlib.util.find_spec("transformers"):
        check("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k")
    else:
        with pytest.raises(RuleError, match="needs transformers for its captions: pip install transformers"):
            check("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k")


def test_unknown_tag_and_wrong_activation() -> None:
    with pytest.raises(RuleError, match=r"no weights 'laion2b' for model 'ViT-B-32'"):
        load("ViT-B-32", "laion2b")
    with pytest.raises(RuleError, match="did you mean 'laion2b_s34b_b79k'"):
        load("ViT-B-32", "laion2b_s34b_b79")
    with pytest.raises(RuleError, match="use 'ViT-B-32-quickgelu'"):
        load("ViT-B-32", "openai")


def test_weights_of_another_model(tiny_clip: TinyClip, tiny_sigmoid: TinyClip) -> None:
    with pytest.raises(RuleError, match="cannot be loaded; are these its weights") as caught:
        load(tiny_clip.config, tiny_sigmoid.weights)
    assert "\n" not in str(caught.value)


class Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('planted', 'w')",)


def test_code_in_a_weights_file_is_not_run(
    tiny_clip: TinyClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Planted()}, tmp_path / "zip.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"state_dict": Planted()}))
    for name in ("zip.pt", "plain.bin"):
        with pytest.raises(RuleError, match="cannot be loaded"):
            load(tiny_clip.config, str(tmp_path / name))
    assert not (tmp_path / "planted").exists()


def test_no_way_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for model in ("ViT-B-32", "hf-hub:nobody/nothing"):
        with pytest.raises(RuleError, match="cannot be loaded; where there is no network, give the path") as caught:
            load(model, "laion2b_s34b_b79k")
        assert "\n" not in str(caught.value)


def test_no_gpu(tiny_clip: TinyClip) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuleError, match="sees no GPU here"):
        load(tiny_clip.config, tiny_clip.weights, "cuda:0")
