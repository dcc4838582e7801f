"""What only a GPU can show: `make test-gpu`. These tests were never run: there was no GPU where they were written.

What fails here may be the test. Tolerances are those of bf16 (8 bits: 0.4 %), of TF32 in the patches' convolution, and
of kernels whose sums come in any order; each is said where it is used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.models import tokenizer
from tests.trainer.training import command, losses
from trainer import parallel
from trainer.config import config_of
from trainer.data.loader import Loader
from trainer.model.attention import Segments, _looped, packed_attention
from trainer.model.folder import load_config, read_tensors
from trainer.optim import build_optimizer, update
from trainer.train import parser

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device: these tests need a GPU"),
]
BF16 = ("parallel.precision=bfloat16",)
LANES = ("data.lanes=8",)  # one rank has at least one: up to 8 GPUs


def trained(arguments: list[str], out: Path, ranks: int = 1, gpu: bool = True) -> dict[int, float]:
    """The losses of a run in processes of its own."""
    run = [sys.executable, "-m"]
    if ranks > 1:
        run += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    shown = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    made = subprocess.run(
        [*run, "trainer.train", *arguments], env={**os.environ, **shown}, capture_output=True, text=True, timeout=900
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return losses(out)


def near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ nowhere by more than this part of the largest value."""
    return bool((one.float() - other.float()).abs().max() <= tolerance * other.float().abs().max())


@pytest.mark.parametrize(("heads", "shared"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("lengths", [(300,), (1, 17, 128, 1, 5, 260), (64,) * 8])
def test_the_kernel_is_the_loop_over_segments(lengths: tuple[int, ...], heads: int, shared: int) -> None:
    torch.manual_seed(0)
    tokens, segments = sum(lengths), Segments(lengths, "cuda")
    exact = [torch.randn(1, many, tokens, 64, device="cuda").requires_grad_() for many in (heads, shared, shared)]
    rounded = [each.detach().bfloat16().requires_grad_() for each in exact]
    with torch.no_grad():  # what the loop sees is what the kernel sees
        for each, other in zip(exact, rounded, strict=True):
            each.copy_(other)
    found, weights = packed_attention(nn.Module(), *rounded, None, segments=segments)
    wanted = _looped(*exact, segments, None)
    assert weights is None
    assert found.dtype == torch.bfloat16
    assert near(found, wanted, 0.01)
    gradient = torch.randn_like(wanted)
    found.backward(gradient.bfloat16())
    wanted.backward(gradient)
    for each, other in zip(rounded, exact, strict=True):
        assert each.grad is not None
        assert other.grad is not None
        assert near(each.grad, other.grad, 0.02)


def test_a_gpu_trains_as_a_cpu_does(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    for stage in (1, 2, 3):
        cpu, gpu = tmp_path / f"cpu{stage}", tmp_path / f"gpu{stage}"
        wanted = trained(command(stage, data[stage], model, cpu, "steps=3"), cpu, gpu=False)
        found = trained(command(stage, data[stage], model, gpu, "steps=3"), gpu)
        assert [*found] == [1, 2, 3]
        assert found == pytest.approx(wanted, rel=5e-3)  # TF32
        assert (gpu / "model/config.json").exists()


def test_bf16_is_near_fp32(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    exact = trained(command(2, data[2], model, tmp_path / "fp32", "steps=10"), tmp_path / "fp32")
    half = trained(command(2, data[2], model, tmp_path / "bf16", "steps=10", *BF16), tmp_path / "bf16")
    assert half == pytest.approx(exact, rel=2e-2)
    assert half[10] < half[1]


def test_what_is_compiled_gives_the_same_losses(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    told = {}
    for name in ("false", "true"):
        arguments = command(2, data[2], model, tmp_path / name, "steps=6", *BF16, f"parallel.compile={name}")
        told[name] = trained(arguments, tmp_path / name)
    assert told["true"] == pytest.approx(told["false"], rel=2e-2)


def test_nothing_is_compiled_again_after_the_first_steps(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    arguments = command(2, data[2], model, tmp_path, "steps=12", *BF16, "parallel.compile=true")
    config = config_of(parser().parse_intermixed_args(arguments))
    ranks = parallel.start(config.parallel)
    try:
        made = parallel.load_sharded(model, config, ranks)
        optimizer = build_optimizer(made, config.optim)
        graphs, shapes, tokens = [], set(), torch.zeros((), device=ranks.device)
        for micro in Loader(config, load_config(model), tokenizer(), 0, 1):
            batch = micro.batch.to(ranks.device)
            made(batch).sum().backward()
            shapes.add((len(batch.input_ids), len(batch.pixels)))
            tokens += len(batch.taught)
            if micro.last:
                update(made, optimizer, tokens, config.optim.clip)
                optimizer.zero_grad()
                tokens.zero_()
                graphs.append(counters["stats"]["unique_graphs"])
    finally:
        parallel.stop()
    assert len(shapes) == 1
    assert graphs[0] > 0
    # Another number of segments and another longest one: once they are found to vary, nothing is special any more.
    assert graphs[4:] == [graphs[4]] * 8


def test_a_checkpoint_is_gone_on_from(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    arguments = command(2, data[2], model, tmp_path, *BF16, "checkpoint.every=3")
    whole = trained(arguments, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/step-00000006")
    shutil.rmtree(tmp_path / "model")
    assert trained(arguments, tmp_path) == pytest.approx(whole, rel=5e-3)
    assert (tmp_path / "model/config.json").exists()


@pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} CUDA devices: NCCL needs two")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_gpus_are_one(stage: int, precision: str, model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    given, many = (*LANES, f"parallel.precision={precision}", "checkpoint.every=3", "steps=6"), min(GPUS, 8)
    one = trained(command(stage, data[stage], model, tmp_path / "one", *given), tmp_path / "one")
    arguments = command(stage, data[stage], model, tmp_path / "all", *given)
    tolerance = 2e-2 if precision == "bfloat16" else 5e-3
    assert trained(arguments, tmp_path / "all", many) == pytest.approx(one, rel=tolerance)
    frozen = {1: "language.", 3: "vision."}.get(stage)
    after = dict(read_tensors(tmp_path / "all/model"))
    for name, tensor in read_tensors(model):
        assert not frozen or not name.startswith(frozen) or torch.equal(tensor, after[name]), name
    # The middle of all GPUs' run, gone on with by one.
    shutil.rmtree(tmp_path / "all/checkpoints/step-00000006")
    shutil.rmtree(tmp_path / "all/model")
    assert trained(arguments, tmp_path / "all") == pytest.approx(one, rel=tolerance)


@pytest.mark.skipif(GPUS < 4, reason=f"{GPUS} CUDA devices: copies of shards need four")
def test_copies_of_shards_are_one(model: Path, data: dict[int, Path], tmp_path: Path) -> None:
    one = trained(command(2, data[2], model, tmp_path / "one", *LANES), tmp_path / "one")
    arguments = command(2, data[2], model, tmp_path / "all", *LANES, "parallel.shard=2")
    assert trained(arguments, tmp_path / "all", 4) == pytest.approx(one, rel=5e-3)
