"""Planning: entries of the real modules, FLOPs against torch's own counter."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.shards.packing import dataset
from tests.trainer.commands import help_of
from tests.trainer.data.sets import cut, pairs, samples
from tests.trainer.models import config, model, pictures, save_model, tokenizer
from trainer.config import load_config
from trainer.devices import DEVICES, look_up
from trainer.errors import ConfigError
from trainer.memory import Memory, share
from trainer.model.config import QWEN_VL
from trainer.model.language import unpacked
from trainer.plan import Cost, Mean, cost, count, image_flops, main, measured, planned, token_flops

ROOT = Path(__file__).parents[2]
GIB = 2**30


@functools.cache
def entries() -> dict[str, int]:
    return count(QWEN_VL)


def costs(*overrides: str) -> list[Cost]:
    return [cost(QWEN_VL, load_config(stage, (), overrides), entries()) for stage in (1, 2, 3)]


def test_qwen_vl_has_the_released_entries() -> None:
    parts = entries()
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
    parts = entries()
    first, second, third = costs()
    assert first.trained == parts["vision"] + parts["adapter"] + parts["projection"]
    assert second.trained == sum(parts.values()) - parts["positions"]
    assert third.trained == parts["adapter"] + parts["language"]
    assert costs("projection_with=adapter")[2].trained == third.trained + parts["projection"]
    for each in (first, second, third):
        assert each.trained + each.frozen == 9_656_935_168
        assert each.state_bytes == 16 * each.trained + 2 * each.frozen
    # Frozen with a gradient passing: twice the forward; trained: three times; frozen with none: once.
    assert first.token_flops == 2 * first.token_flops_forward
    assert second.token_flops == 3 * second.token_flops_forward
    assert first.image_flops == 3 * first.image_flops_forward
    assert third.image_flops < 1.1 * third.image_flops_forward


def test_what_trains_alone_has_nothing_passing_below() -> None:
    made = costs("trains=[language]")[1]
    assert made.image_flops == made.image_flops_forward
    assert made.token_flops == 3 * made.token_flops_forward


def plan(
    stage: int, gpus: int, *overrides: str, mean: Mean | None = None, gib: float = 40
) -> tuple[dict[str, float], str]:
    run = load_config(stage, (), overrides)
    mean = mean or Mean(5, 2048, None, "")
    memory = Memory(*(int(gib * GIB / 6),) * 6)
    made = cost(QWEN_VL, run, entries())
    numbers, warnings = planned(share(QWEN_VL, run, gpus), gpus, made, mean, memory, "h100", 0.4)
    return numbers, "\n".join(warnings)


def test_hours_and_images_are_those_of_the_flops() -> None:
    numbers, warnings = plan(2, 64)
    step = 4096 * (5 * 12_655_764e6 + 2048 * 44_205e6)
    assert numbers["PFLOP a step"] == pytest.approx(step / 1e15, rel=1e-3)
    assert numbers["s a step"] == pytest.approx(step / (64 * 989e12 * 0.4), rel=1e-3)
    assert numbers["GPU-hours"] == pytest.approx(19_000 * 64 * numbers["s a step"] / 3600)
    assert numbers["images/s of a GPU"] == pytest.approx(4096 * 5 / numbers["s a step"] / 64)
    assert (numbers["forwards a step"], numbers["of"]) == (64, 1)
    assert "few tokens, 2,048 a forward: under 7,912" in warnings
    assert "parallel.shard=8" in warnings
    assert plan(2, 64, "parallel.shard=8")[1] == ""
    assert "steps of the paper's samples" not in numbers
    assert plan(2, 64, mean=Mean(5, 2000, 6.4, ""))[0]["steps of the paper's samples"] == 76.8e6 / 6.4 / 4096


@pytest.mark.parametrize(
    ("stage", "gpus", "overrides", "gib", "warning"),
    [
        (3, 512, (), 40, "512 GPUs are more than data.lanes, 128: training refuses, the numbers are of 128"),
        (1, 1000, (), 40, "data.lanes 1024 are no multiple of 1000 GPUs: 48.8% of the work is fillers"),
        (1, 8, ("batch.micro=40",), 40, "batch.micro 40 cannot be had of 30 a lane: a forward has 30"),
        (1, 8, (), 171, "171.0 GiB does not fit the GPU's 74.5: batch.micro below "),
        (1, 8, (), 70, "70.0 GiB is nearly all of the GPU's 74.5: "),
        (1, 8, ("parallel.precision=float32",), 40, "precision is float32: time is reckoned with the speed of bf"),
        (1, 8, ("steps=null", "epochs=1"), 40, "epochs depend on the data: for hours name steps=N epochs=null"),
    ],
)
def test_what_is_to_be_minded_is_said(
    stage: int, gpus: int, overrides: tuple[str, ...], gib: float, warning: str
) -> None:
    said = plan(stage, gpus, *overrides, gib=gib)[1]
    assert warning in said
    assert warning not in plan(2, 64)[1]


def test_fillers_take_time_too() -> None:
    # 513 to 1,023 GPUs have two lanes each, as 512 have: no faster.
    assert plan(1, 1000)[0]["s a step"] == pytest.approx(plan(1, 512)[0]["s a step"])


def test_devices_go_by_the_first_name_that_fits() -> None:
    assert look_up("NVIDIA H100 80GB HBM3") == DEVICES["h100"]
    assert look_up("NVIDIA H100 PCIe") == DEVICES["h100 pcie"] != DEVICES["h100"]
    assert look_up("NVIDIA GB200") == DEVICES["gb200"] != DEVICES["b200"]
    assert look_up("Tesla T4") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "model"
    save_model(model(), tokenizer(), made)
    return made


def test_data_are_measured_as_they_are_packed(tmp_path: Path, folder: Path) -> None:
    everything = Path(dataset(tmp_path / "all", cut(samples(90), [40, 50])))
    given = {"data": {"manifests": [str(everything)]}}
    packed = measured(config(), load_config(2, (), ("data.length=256",), **given), folder)
    alone = measured(config(), load_config(2, (), ("data.length=256", "data.pack=null"), **given), folder)
    assert alone.samples == 1
    assert packed.samples is not None
    assert packed.samples > 1
    assert 128 < packed.tokens <= 256
    assert packed.tokens == pytest.approx(alone.tokens * packed.samples, rel=0.2)
    assert 90 <= int(packed.said.split()[2]) < 100  # until all have been drawn, and a pack is full
    assert alone.said.startswith("measured on 90 samples of ")
    captions = Path(dataset(tmp_path / "pairs", cut(pairs(30), [30])))
    one = measured(config(), load_config(1, (), (), data={"manifests": [str(captions)]}), folder)
    assert (one.images, one.samples) == (1, 1)
    with pytest.raises(ConfigError, match="none of 30 samples can be trained on with data.length=10"):
        measured(config(), load_config(1, (), ("data.length=10",), data={"manifests": [str(captions)]}), folder)


def test_it_prints_presets_and_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qwen-vl"]) == 0
    told = capsys.readouterr().out
    assert "9,656,935,168 entries" in told
    assert "| vision, adapter, projection |" in told
    assert main([str(folder)]) == 0
    told = capsys.readouterr().out
    assert f": {sum(p.numel() for p in model().parameters()) + 16 * 64:,} entries" in told
    assert "| stage 1 " in told
    assert "| stage 3 " in told
    assert "| 224 " in told
    assert main(["tiny", "--stage", "2", "optim.lr=1e-4"]) == 0


def test_a_run_is_planned_with_the_arguments_of_training(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path, cut(samples(40), [40]))
    small = ["image_size=32", "data.length=256", "batch.size=8", "data.lanes=8", "steps=10"]
    command = [str(folder), "--stage", "2", "--gpus", "4", "--device", "a100", "--data", data]
    assert main([*command, *small]) == 0
    told = capsys.readouterr().out
    assert "| stage 2, 4 GPUs |" in told
    assert "| images of each " in told
    assert "| steps of the paper's samples" in told
    assert "- data of stage 2: measured on " in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "nothing: there is no such folder"),
        (["tiny", "--gpus", "8"], "--gpus, at least 1, needs a --stage; --data needs --gpus"),
        (["tiny", "--stage", "1", "--gpus", "0"], "--gpus, at least 1"),
        (["tiny", "--stage", "1", "--data", "x"], "--gpus, at least 1"),
        (["tiny", "--mfu", "40"], "--mfu 40: a share above 0, of at most 1"),
        (["tiny", "--device", "abacus"], "--device abacus: not known: there are a100, h100 pcie"),
        (["tiny", "--stage", "1", "--gpus", "8", "--data", "x"], "--data: tiny has no tokenizer"),
        (
            ["tiny", "--stage", "1", "--gpus", "8", "optim.rl=1"],
            "optim.rl=1: optim.rl is no setting: did you mean optim.lr?",
        ),
        (["tiny", "--stage", "1", "--gpus", "8", "parallel.shard=3"], "parallel.shard 3 does not divide 8 ranks"),
        (["qwen-vl", "image_size=225"], "image_size 225 is no multiple of patch_size 14"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1


@pytest.mark.slow
def test_the_page_of_the_docs_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qwen-vl", "--table"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "plan-qwen-vl.md").read_text()


def test_help_answers_at_once_with_an_example() -> None:
    assert "example:" in help_of("trainer.plan")


def test_what_a_configuration_leaves_to_its_family_is_reckoned_with() -> None:
    language = {key: value for key, value in config().language.items() if key != "rms_norm_eps"}
    for key in ("num_attention_heads", "tie_word_embeddings", "num_hidden_layers"):
        del language[key]
    assert token_flops(config().model_copy(update={"language": language | {"hidden_size": 64}}), 10, 10**6) > 0
