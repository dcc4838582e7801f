"""Real ranks: gloo processes of a fork server that has imported all of this once."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.trainer import models
from tests.trainer.models import save_model
from trainer.config import Parallel, TrainConfig, load_config
from trainer.data.batch import Batch, Encoded
from trainer.errors import ConfigError, ModelError
from trainer.model.folder import read_tensors
from trainer.model.vlm import VisionLanguageModel
from trainer.optim import build_optimizer, lr_at, module_norms, set_lr, update
from trainer.parallel import Ranks, add_up, full_tensors, hurry, load_sharded, same, start, stop, together

STEPS = 20
MICROS = 4  # micro-batches of a step, on however many ranks


def settings(stage: int, *overrides: str) -> TrainConfig:
    ours = ("image_size=32", f"steps={STEPS}", "optim.warmup=3", "optim.lr=2e-3", "parallel.precision=float32")
    return load_config(stage, (), (*ours, *overrides))


def micro_batch(step: int, micro: int) -> Batch:
    """Of 1 to 3 samples; the second of a step shows no image, the third has in every fifth step nothing to learn."""
    rng = random.Random(100 * step + micro)
    if micro == 2 and step % 5 == 0:
        return models.packed([Encoded((models.tokenizer().special["eos"],), (False,), 0, "caption", 0)], [])
    shown = [0 if micro == 1 else rng.randrange(3) for _ in range(rng.randint(1, 3))]
    samples = [models.sample(rng, images, rng.randint(4, 24)) for images in shown]
    return models.packed(samples, models.pictures(sum(shown), seed=step * MICROS + micro))


def run(folder: Path, config: TrainConfig, ranks: Ranks, steps: int = STEPS) -> dict[str, Any]:
    """A loop as training has it, with what can be seen of it from outside."""
    model = load_sharded(folder, config, ranks)
    optimizer = build_optimizer(model, config.optim)
    losses, norms, parts = [], [], {}
    for step in range(steps):
        loss, tokens = torch.zeros(()), torch.zeros(())
        for micro in range(MICROS)[ranks.rank :: ranks.world]:
            each = model(micro_batch(step, micro))
            each.sum().backward()
            loss, tokens = loss + each.detach().sum(), tokens + len(each)
        add_up(loss, ranks)
        add_up(tokens, ranks)
        set_lr(optimizer, lr_at(step, config.optim, steps))
        parts = module_norms(model, tokens)
        norms.append(update(model, optimizer, tokens, config.optim.clip).item())
        optimizer.zero_grad()
        losses.append((loss / tokens).item())
    frozen = {name: whole(each) for name, each in model.named_parameters() if not each.requires_grad}
    parts = {name: norm.item() for name, norm in parts.items()}
    return {"losses": losses, "norms": norms, "parts": parts, "state": dict(full_tensors(model)), "frozen": frozen}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def on_ranks(count: int, out: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What `work(*given)` gives on each of `count` ranks, which find each other as under torchrun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [out / f"{work.__name__}-{rank}.pt" for rank in range(count)]
    ranks = [
        context.Process(target=_rank, args=(rank, count, port, file, work, given)) for rank, file in enumerate(files)
    ]
    for each in ranks:
        each.start()
    try:
        for each in ranks:
            each.join(100)
        assert [each.exitcode for each in ranks] == [0] * count
    finally:
        for each in ranks:
            each.kill()
    return [torch.load(file, weights_only=False) for file in files]


def _rank(rank: int, world: int, port: int, file: Path, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    began = time.time()
    c = time.process_time()
    torch.save(work(*given), file)
    print(rank, work.__name__, time.time() - began, time.process_time() - c, flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tied head."""
    made = tmp_path_factory.mktemp("model") / "model"
    save_model(models.model(), models.tokenizer(), made)
    return made


@pytest.fixture
def alone() -> Iterator[None]:
    yield
    stop()


def _stages(folder: Path, configs: list[TrainConfig]) -> list[dict[str, Any]]:
    return [run(folder, config, start(config.parallel), 8 if config.parallel.shard else STEPS) for config in configs]


def test_four_ranks_train_what_one_process_trains_in_every_stage(folder: Path, tmp_path: Path) -> None:
    """Ranks without an image and ranks without a token among them; stage 2 as HSDP of 2 x 2, recomputed, as well."""
    replicated = settings(2, "parallel.shard=2", "parallel.recompute=[vision, language]")
    configs = [settings(1), settings(2), settings(3), replicated]
    stored = dict(read_tensors(folder))
    alone = _stages(folder, configs[:3]) + _stages(folder, [settings(2, "parallel.shard=1")])
    shared = on_ranks(4, tmp_path, _stages, folder, configs)
    assert not dist.is_initialized()
    assert alone[1]["losses"][-1] < alone[1]["losses"][0] - 0.1  # it learns, so that there is something to compare
    for number, config in enumerate(configs):
        one = alone[number]
        for other in (each[number] for each in shared):
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
            assert other["norms"] == pytest.approx(one["norms"], rel=1e-4)
            assert other["parts"] == pytest.approx(one["parts"], rel=1e-4)
            assert {*other["parts"]} == {*config.trains} | ({"projection"} if "vision" in config.trains else set())
            assert other["state"].keys() == one["state"].keys()
            for name, tensor in one["state"].items():
                torch.testing.assert_close(other["state"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
            # What is frozen is what was read, to the bit, and nothing is both or neither.
            assert all(torch.equal(tensor, stored[name]) for name, tensor in other["frozen"].items())
            assert sorted([*other["state"], *other["frozen"], "adapter.pos_embed"]) == sorted(stored)


def _loaded(folder: Path) -> dict[str, Any]:
    """On three ranks, which divide no width."""
    found: dict[str, Any] = {}
    dist.init_process_group("gloo")  # as Ray Train does
    group = dist.group.WORLD
    ranks = start(Parallel(precision="float32"))
    assert dist.group.WORLD is group
    model = load_sharded(folder, settings(2), ranks)
    found["state"] = dict(full_tensors(model)) | {"adapter.pos_embed": model.adapter.pos_embed}
    found["held"] = sum(each.to_local().numel() for each in model.parameters() if isinstance(each, DTensor))
    found["all"] = sum(each.numel() for each in model.parameters())
    found["sum"] = add_up(torch.tensor(float(ranks.rank)), ranks).item()
    found["counts"] = together(Counter({"a": ranks.rank, f"b{ranks.rank}": 1}), ranks)
    found["same"] = same(ranks, lambda: [ranks.rank, "told"])
    try:
        same(ranks, lambda: load_config(1, (), ("optim.no=1",)))
    except ConfigError as error:
        found["error"] = str(error)
    # A gradient that is no number on one rank alone: no rank steps.
    optimizer = build_optimizer(model, settings(2).optim)
    model(micro_batch(0, 0)).sum().backward()
    before = [whole(each) for each in model.parameters()]
    if ranks.rank == 1:
        next(model.parameters()).grad.to_local().view(-1)[0] = torch.nan
    found["norm"] = update(model, optimizer, torch.tensor(5.0), 1.0).item()
    found["kept"] = all(torch.equal(whole(each), old) for each, old in zip(model.parameters(), before, strict=True))
    found["steps"] = {state["step"].item() for state in optimizer.state.values()}
    # A rank that does not come is not waited for.
    hurry(ranks, 1)
    began = time.monotonic()
    if ranks.rank == 0:
        time.sleep(4)
    else:
        with pytest.raises(RuntimeError, match=r"(?i)tim(ed )?out"):
            add_up(torch.zeros(()), ranks)
    found["waited"] = time.monotonic() - began
    return found


def test_ranks_read_their_rows_and_speak_to_each_other(folder: Path, tmp_path: Path) -> None:
    stored = dict(read_tensors(folder))
    found = on_ranks(3, tmp_path, _loaded, folder)
    for each in found:
        assert each["state"].keys() == stored.keys()
        assert all(torch.equal(each["state"][name], tensor) for name, tensor in stored.items())
        assert each["sum"] == 3
        assert each["counts"] == {"a": 3, "b0": 1, "b1": 1, "b2": 1}
        assert each["same"] == [0, "told"]
        assert "optim.no is no setting" in each["error"]
        assert each["norm"] != each["norm"]
        assert each["kept"]
        assert each["steps"] == {0}
    assert sum(each["held"] for each in found) == found[0]["all"]
    assert max(each["held"] for each in found) < 0.4 * found[0]["all"]
    assert max(each["waited"] for each in found[1:]) < 3.5


def _half(folder: Path) -> dict[str, Any]:
    config = settings(1, "parallel.precision=bfloat16")
    ranks = start(config.parallel)
    model = load_sharded(folder, config, ranks)
    optimizer = build_optimizer(model, config.optim)
    seen: dict[str, Any] = {}
    for name, block in (
        ("vision", model.vision.transformer.resblocks[0]),
        ("language", model.language.model.layers[0]),
    ):
        block.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    losses = model(micro_batch(1, ranks.rank))
    losses.sum().backward()
    gradients = {each.grad.dtype for each in model.parameters() if each.requires_grad}
    tokens = add_up(torch.tensor(float(len(losses))), ranks)
    update(model, optimizer, tokens, 1.0)
    stop()
    return {
        "compute": seen,
        "losses": losses.dtype,
        "gradients": gradients,
        "masters": {each.dtype for each in model.parameters() if each.requires_grad},
        "frozen": {each.dtype for each in model.parameters() if not each.requires_grad},
        "moments": {state[key].dtype for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")},
        "buffers": {each.dtype for each in model.buffers()},
        "mean": losses.mean().item(),
    }


def test_bfloat16_computes_and_keeps_what_is_frozen_and_float32_the_rest(folder: Path, tmp_path: Path) -> None:
    full, half = {torch.float32}, {torch.bfloat16}
    exact = load_sharded(folder, settings(1), start(Parallel(precision="float32")))
    for rank, found in enumerate(on_ranks(2, tmp_path, _half, folder)):
        assert found["compute"] == {"vision": torch.bfloat16, "language": torch.bfloat16}
        assert found["losses"] == torch.float32
        assert found["frozen"] == half
        assert [found[what] for what in ("gradients", "masters", "moments", "buffers")] == [full] * 4
        assert found["mean"] == pytest.approx(exact(micro_batch(1, rank)).mean().item(), rel=0.02)


def test_alone_a_group_of_one_is_made_for_mixed_precision_only(folder: Path, alone: None) -> None:
    plain = start(Parallel(precision="float32"))
    assert (plain.rank, plain.world, plain.mesh, plain.gloo) == (0, 1, None, None)
    assert not dist.is_initialized()
    assert not any(isinstance(each, DTensor) for each in load_sharded(folder, settings(2), plain).parameters())
    hurry(plain, 1)
    one = start(Parallel())
    assert one.mesh is not None
    assert one.mesh.shape == (1,)
    assert run(folder, settings(2, "parallel.precision=bfloat16"), one, 2)["norms"][-1] > 0


@pytest.mark.parametrize("shard", [2, 3])
def test_a_shard_that_does_not_divide_the_ranks_is_refused(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8" if shard == 3 else "1")
    with pytest.raises(ConfigError, match=f"parallel.shard {shard} does not divide"):
        start(Parallel(shard=shard))


def test_ranks_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="2 ranks do not meet: .*MASTER_ADDR.*torchrun"):
        start(Parallel())
    assert not dist.is_initialized()


def test_a_folder_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.*"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    eyes = load_file(tmp_path / "vision.safetensors")
    for change, what in (
        ({"vision.conv1.weight": None}, "vision.conv1.weight is missing"),
        ({"vision.no": torch.zeros(1)}, "vision.no: this model has no such tensor"),
        ({"adapter.query": torch.zeros(9, 64)}, r"adapter.query: its shape is \[9, 64\]"),
    ):
        changed = {name: tensor for name, tensor in {**eyes, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "vision.safetensors")
        with pytest.raises(ModelError, match=what):
            load_sharded(tmp_path, settings(2), start(Parallel(precision="float32")))


def _gradients(model: VisionLanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    losses = model(micro_batch(1, 0))
    losses.sum().backward()
    return losses.detach(), {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputed_and_compiled_blocks_give_the_same(
    folder: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = start(Parallel(precision="float32"))
    losses, gradients = _gradients(load_sharded(folder, settings(2), ranks))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no C++ compiler's minutes
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    config = settings(2, "parallel.recompute=[vision, language]", f"parallel.compile={str(compiled).lower()}")
    model = load_sharded(folder, config, ranks)
    calls: Counter[str] = Counter()
    if not compiled:
        for name, part in (("v", model.vision.transformer.resblocks[0].mlp), ("l", model.language.model.layers[0].mlp)):
            part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    again, others = _gradients(model)
    # Recomputed: once forward, once in the backward. Compiled: inside of what is computed again, or nothing would be.
    assert calls == ({} if compiled else {"v": 2, "l": 2})
    assert (counted["stats"]["unique_graphs"] > 1) == compiled
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-6)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
