"""Planning: entries of the real modules, FLOPs against torch's own counter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.models import config, model, pictures
from trainer.model.config import QWEN_VL
from trainer.model.folder import save_model
from trainer.model.language import unpacked
from trainer.plan import costs, count, image_flops, main, token_flops


def test_qwen_vl_has_the_released_entries() -> None:
    parts = count(QWEN_VL)
    assert sum(parts.values()) == 9_656_935_168
    assert parts["adapter"] + parts["positions"] == 76_054_528


def counted(run: object) -> int:
    # The counter knows nothing of the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        run()  # type: ignore[operator]
    return int(counter.get_total_flops())


@pytest.mark.parametrize("size", [32, 64])
def test_flops_of_an_image_are_those_that_torch_counts(size: int) -> None:
    made = model().train()  # outside of evaluation nothing is fused away from the counter
    pixels = torch.stack(pictures(3, size))
    # Two tables of positions, of tower and adapter, are interpolated once, however many images there are.
    once = 2 * 64 * 16 * (32 + 64) if size == 64 else 0
    assert 3 * sum(image_flops(config(), size).values()) + once == counted(lambda: made.encode_images(pixels))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_flops_of_a_token_are_those_that_torch_counts(tied: bool, kv_heads: int) -> None:
    made = model(tie_word_embeddings=tied, num_key_value_heads=kv_heads)
    parameters = sum(p.numel() for p in made.language.parameters())
    length = 24
    with unpacked(made.language, "eager"):
        ids = torch.zeros(1, length, dtype=torch.long)
        seen = counted(lambda: made.language(ids, use_cache=False))
    # Norms are no products; eager attention multiplies the half behind the diagonal too.
    norms = sum(p.numel() for name, p in made.language.named_parameters() if p.dim() == 1 and "norm" in name)
    biases = sum(p.numel() for name, p in made.language.named_parameters() if p.dim() == 1 and "bias" in name)
    ours = length * (token_flops(made.config, length, parameters) - 2 * (norms + biases))
    attention = 2 * 2 * length * 64  # layers x 2 x length x width, per token: what causality saves, nearly
    assert seen == ours + length * (attention - 2 * 2 * 64)


def test_what_trains_in_each_stage() -> None:
    parts = count(QWEN_VL)
    first, second, third = costs(QWEN_VL)
    assert first.trained == parts["vision"] + parts["adapter"] + parts["projection"]
    assert second.trained == sum(parts.values()) - parts["positions"]
    assert third.trained == parts["adapter"] + parts["language"]
    assert costs(QWEN_VL, "adapter")[2].trained == third.trained + parts["projection"]
    for cost in (first, second, third):
        assert cost.trained + cost.frozen == 9_656_935_168
        assert cost.state_bytes == 16 * cost.trained + 2 * cost.frozen
    assert (first.image_size, second.image_size, third.image_size) == (224, 448, 448)
    # Frozen with a gradient passing: twice the forward; trained: three times; frozen with none: once.
    assert first.token_flops == 2 * first.token_flops_forward
    assert second.token_flops == 3 * second.token_flops_forward
    assert first.image_flops == 3 * first.image_flops_forward
    assert third.image_flops < 1.1 * third.image_flops_forward


def test_it_prints_presets_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.trainer.models import tokenizer

    assert main(["qwen-vl"]) == 0
    told = capsys.readouterr().out
    assert "9,656,935,168 entries" in told
    assert "trains                        vision, adapter, projection" in told
    save_model(model(), tokenizer(), tmp_path / "model")
    assert main([str(tmp_path / "model"), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert sum(read["parameters"].values()) == sum(p.numel() for p in model().parameters()) + 16 * 64
    assert [stage["stage"] for stage in read["stages"]] == [1, 2, 3]
    assert main(["tiny"]) == 0


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/nothing: there is no such folder")


def test_help_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "trainer.plan", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "example:" in shown.stdout
    assert "| torch\n" not in shown.stderr


def test_what_a_configuration_leaves_to_its_family_is_reckoned_with() -> None:
    language = {key: value for key, value in config().language.items() if key != "rms_norm_eps"}
    for key in ("num_attention_heads", "tie_word_embeddings", "num_hidden_layers"):
        del language[key]
    assert token_flops(config().model_copy(update={"language": language | {"hidden_size": 64}}), 10, 10**6) > 0
