"""Checkpoints: written by real ranks, killed, damaged, on full disks, on an object store; what comes back is equal."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from shards.storage import Storage
from tests.s3 import Fault, Store, serving_here
from tests.small_disk import small_disk
from tests.trainer import models
from trainer.checkpoint import Checkpoints, folder_hash
from trainer.errors import CheckpointError, ModelError
from trainer.model.vlm import VisionLanguageModel, set_trainable
from trainer.parallel import Ranks

_RANKS = multiprocessing.get_context("forkserver")
_RANKS.set_forkserver_preload(["tests.trainer.test_checkpoint", "transformers.models.qwen2.modeling_qwen2"])
STATE = {"config": {"stage": 2}, "model": {"name": "start", "sha256": "ab"}}


def built(trains: tuple[str, ...] = ("vision", "adapter"), seed: int = 0, mesh: Any = None, queries: int = 16) -> Any:
    """A small model, sharded as a run shards it, and its optimizer."""
    model = models.model(seed, queries).train()
    set_trainable(model, trains)  # type: ignore[arg-type]
    if mesh is not None:
        for unit in (*model.vision.transformer.resblocks, *model.language.base_model.layers, model):
            fully_shard(unit, mesh=mesh)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    halves = [{"params": trained[::2], "name": "even"}, {"params": trained[1::2], "name": "odd"}]
    return model, torch.optim.AdamW(halves, lr=1e-3, betas=(0.9, 0.98), fused=True)


def stepped(model: VisionLanguageModel, optimizer: Any, steps: int = 2) -> None:
    """Steps of gradients that do not depend on how the model is sharded."""
    for step in range(steps):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(hash((name.count("."), len(name), step)) % 2**31)
                whole = torch.randn(parameter.shape, generator=generator)
                if isinstance(parameter, DTensor):
                    like = parameter.to_local()
                    parts = whole.chunk(parameter.device_mesh.size())
                    rank = parameter.device_mesh.get_local_rank()
                    part = parts[rank] if rank < len(parts) else whole[:0]
                    assert part.shape == like.shape
                    parameter.grad = DTensor.from_local(
                        part, parameter.device_mesh, parameter.placements, shape=whole.shape, stride=whole.stride()
                    )
                else:
                    parameter.grad = whole
        optimizer.step()
        optimizer.zero_grad()


def held(model: VisionLanguageModel, optimizer: Any, local: bool = False) -> dict[str, Tensor]:
    """All parameters and all state of the optimizer, as copies; local: of sharded ones what this rank holds."""
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach()
        found |= {f"{name} {key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    if local:
        found = {name: each.to_local() if isinstance(each, DTensor) else each for name, each in found.items()}
    return {name: each.clone() for name, each in found.items()}


def must_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def alone(folder: Path | str, keep_last: int = 3, background: bool = False) -> Checkpoints:
    return Checkpoints(Storage.open(str(folder)), Ranks(0, 1, 0, torch.device("cpu")), keep_last, background)


def saved(folder: Path | str, *steps: int, keep_last: int = 3) -> tuple[Any, Any]:
    """A folder with checkpoints of a run that ended at the last step."""
    model, optimizer = built()
    kept = alone(folder, keep_last)
    for step in steps:
        stepped(model, optimizer, 1)
        kept.save(step, model, optimizer, STATE, {"0": {"taken": [step]}})
    return model, optimizer


def failing(kept: Checkpoints, step: int, model: Any, optimizer: Any) -> str:
    """What a save that fails, at once or later, says."""
    try:
        kept.save(step, model, optimizer, STATE, {})
        kept.wait()
    except CheckpointError as error:
        return str(error)
    return "it was saved"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("template") / "kept"
    saved(folder, 1, 2)
    return folder


@pytest.fixture
def kept(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "kept")
    return tmp_path / "kept"


# Ranks: real processes, forked from one that has imported everything.


def _rank(work: Callable[..., Any], rank: int, world: int, store: Path, answers: Any, *args: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world)
        mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
        ranks = Ranks(rank, world, rank, torch.device("cpu"), mesh, dist.new_group(backend="gloo"))
        answers.put((rank, work(ranks, *args)))
        dist.barrier()
    except BaseException as error:
        answers.put((rank, error))
        raise
    finally:
        dist.destroy_process_group()


def on(world: int, tmp_path: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(ranks, *args)` gives on each of `world` ranks."""
    answers = _RANKS.Queue()
    store = tmp_path / f"store-{time.monotonic_ns()}"
    processes = [_RANKS.Process(target=_rank, args=(work, r, world, store, answers, *args)) for r in range(world)]
    for process in processes:
        process.start()
    try:
        given = dict(answers.get(timeout=60) for _ in processes)
        for answer in given.values():
            if isinstance(answer, BaseException):
                raise answer
        return [given[rank] for rank in range(world)]
    finally:
        for process in processes:
            process.join(30)
            process.kill()


def save_sharded(ranks: Ranks, folder: str, background: bool, trains: tuple[str, ...]) -> dict[str, Any]:
    model, optimizer = built(trains, mesh=ranks.mesh)
    stepped(model, optimizer)
    kept = Checkpoints(Storage.open(folder), ranks, 3, background)
    kept.save(7, model, optimizer, STATE, {str(ranks.rank): {"taken": [ranks.rank]}})
    before = held(model, optimizer, local=True)
    stepped(model, optimizer)  # what was saved is not what is there now
    kept.wait()
    return {name: tensor.numpy() for name, tensor in before.items()}


def load_sharded(ranks: Ranks, folder: str, trains: tuple[str, ...]) -> dict[str, Any]:
    model, optimizer = built(trains, mesh=ranks.mesh)
    Checkpoints(Storage.open(folder), ranks, 3, False).load(7, model, optimizer)
    return {name: tensor.numpy() for name, tensor in held(model, optimizer, local=True).items()}


def whole(answers: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors of which each rank gave its rows; steps are whole on each."""
    joined = {name: [torch.tensor(answer[name]) for answer in answers] for name in answers[0]}
    return {name: torch.cat(parts) if parts[0].ndim else parts[0] for name, parts in joined.items()}


ALL = ("vision", "adapter", "language")


@pytest.mark.parametrize(("trains", "background"), [(("vision", "adapter"), True), (ALL, False)])
def test_two_ranks_save_and_any_number_goes_on(tmp_path: Path, trains: tuple[str, ...], background: bool) -> None:
    folder = str(tmp_path / "kept")
    before = whole(on(2, tmp_path, save_sharded, folder, background, trains))
    for world in (2, 4) if background else ():
        must_equal(whole(on(world, tmp_path, load_sharded, folder, trains)), before)
    model, optimizer = built(trains)
    kept = alone(folder)
    kept.load(7, model, optimizer)
    must_equal(held(model, optimizer), before)
    assert kept.state(7) == {**STATE, "position": {"0": {"taken": [0]}, "1": {"taken": [1]}}}
    assert any(name.endswith("exp_avg_sq") for name in before)


def test_one_process_comes_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path / "kept", 1, 2)
    before = held(model, optimizer)
    other, fresh = built(seed=1)
    frozen = {name: tensor for name, tensor in held(other, fresh).items() if name.startswith("language")}
    kept = alone(tmp_path / "kept")
    kept.load(2, other, fresh)
    after = held(other, fresh)
    for name, tensor in after.items():
        assert torch.equal(tensor, frozen.get(name, before[name])), name
    assert [group["name"] for group in fresh.param_groups] == ["even", "odd"]
    assert [group["lr"] for group in fresh.param_groups] == [1e-3, 1e-3]
    # And goes on as the one that was never stopped.
    stepped(model, optimizer)
    stepped(other, fresh)
    for name, tensor in held(other, fresh).items():
        assert torch.equal(tensor, frozen.get(name, held(model, optimizer)[name])), name


def test_only_what_trains_is_kept(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    model, _ = saved(tmp_path, 1)
    keys = FileSystemReader(tmp_path / "step-00000001").read_metadata().state_dict_metadata.keys()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key.removeprefix("model.") for key in keys if key.startswith("model.")} == trains
    assert not any(name.startswith("language") for name in trains)
    assert {key.rpartition(".")[2] for key in keys if key.startswith("optim.")} == {"step", "exp_avg", "exp_avg_sq"}


def test_what_is_saved_in_the_background_is_what_was(tmp_path: Path) -> None:
    model, optimizer = built()
    stepped(model, optimizer)
    before = held(model, optimizer)
    kept = alone(tmp_path, background=True)
    kept.save(2, model, optimizer, STATE, {"0": {}})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.fill_(7)
    kept.wait()
    kept.load(2, model, optimizer)
    after = held(model, optimizer)
    for name in after:
        if not name.startswith("language"):
            assert torch.equal(after[name], before[name]), name


def test_the_layout(kept: Path) -> None:
    folder = kept / "step-00000002"
    assert names(folder) == [".metadata", "__0_0.distcp", "complete.json", "state.json"]
    marker = json.loads((folder / "complete.json").read_text())
    assert {name: file[0] for name, file in marker.items()} == {
        name: (folder / name).stat().st_size for name in names(folder) if name != "complete.json"
    }
    assert alone(kept).steps() == [1, 2]
    assert alone(kept / "nothing").steps() == []


def test_the_last_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 5, keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]
    saved(tmp_path, 6, keep_last=1)
    assert names(tmp_path) == ["step-00000006"]


def test_steps_after_it_are_left(kept: Path) -> None:
    saved(kept, 1, keep_last=1)  # somebody went back to step 0
    assert alone(kept).steps() == [1, 2]


def test_what_is_saved_again_is_the_later(kept: Path) -> None:
    alone(kept).save(2, *built(), STATE, {"other": 1})
    assert alone(kept).steps() == [1, 2]
    assert alone(kept).state(2)["position"] == {"other": 1}


def test_what_a_crash_left_is_swept_when_the_next_begins(kept: Path) -> None:
    for name in ("step-00000003", "step-00000009"):
        (kept / name).mkdir()
        (kept / name / "__7_0.distcp").write_bytes(b"half")
    (kept / "notes").mkdir()
    assert alone(kept).steps() == [1, 2]
    saved(kept, 3)
    assert names(kept) == ["notes", "step-00000001", "step-00000002", "step-00000003"]
    assert "__7_0.distcp" not in names(kept / "step-00000003")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "complete.json"])
@pytest.mark.parametrize("hurt", [_flip, _cut, Path.unlink])
def test_damage_is_one_line(kept: Path, name: str, hurt: Callable[[Path], None]) -> None:
    path = kept / "step-00000002" / name
    hurt(path)
    model, optimizer = built()
    stepped(model, optimizer)
    before = held(model, optimizer)
    with pytest.raises(CheckpointError) as told:
        alone(kept).load(2, model, optimizer)
    assert str(told.value).startswith(f"{kept}/step-00000002")
    assert name == "complete.json" or str(path) in str(told.value)
    assert "\n" not in str(told.value)
    must_equal(held(model, optimizer), before)
    if name == "state.json":
        with pytest.raises(CheckpointError):
            alone(kept).state(2)
    alone(kept).load(1, model, optimizer)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"../../x": [1, "ab"]}', '{"/etc/passwd": [1, "ab"]}', "{}"])
def test_a_marker_of_nonsense_is_one_line(kept: Path, text: str) -> None:
    (kept / "step-00000002" / "complete.json").write_text(text)
    with pytest.raises(CheckpointError, match="step-00000002"):
        alone(kept).load(2, *built())


def test_another_models_checkpoint_is_one_line(kept: Path) -> None:
    for made, line in (
        (built(queries=4), r"of another model or stage: model.adapter\S+: \[16, \d+\] there, \[4, \d+\] here"),
        (built(ALL), r"model.language\S+: absent there, \[\d+.*\] here"),
        (built(("adapter",)), r"model.projection\S+: \[\d+.*\] there, absent here"),
    ):
        with pytest.raises(CheckpointError, match=rf"\A{re.escape(str(kept))}/step-00000002: .*{line}\Z"):
            alone(kept).load(2, *made)
    with pytest.raises(CheckpointError, match="step-00000005: no complete checkpoint"):
        alone(kept).state(5)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_one_line_and_earlier_ones_stand(tmp_path: Path, background: bool) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        model, optimizer = saved(disk, 1)
        used = sum(path.stat().st_size for path in (disk / "step-00000001").iterdir())
        (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - used // 2))
        before = held(model, optimizer)
        stepped(model, optimizer)
        kept = alone(disk, background=background)
        told = failing(kept, 2, model, optimizer)
        assert re.fullmatch(rf"cannot write {disk}/step-00000002: no space left on the device: .*", told)
        assert kept.steps() == [1]
        (disk / "other").unlink()
        kept.save(3, model, optimizer, STATE, {})
        kept.wait()
        assert names(disk) == ["step-00000001", "step-00000003"]
        kept.load(1, model, optimizer)
        must_equal(held(model, optimizer), before)


def test_an_error_in_the_background_comes_out_of_the_next_save(kept: Path) -> None:
    model, optimizer = built()
    (kept / "step-00000003").write_text("a file in the way")
    checkpoints = alone(kept, background=True)
    checkpoints.save(3, model, optimizer, STATE, {})
    with pytest.raises(CheckpointError, match="cannot write .*step-00000003"):
        checkpoints.save(4, model, optimizer, STATE, {})
    checkpoints.save(4, model, optimizer, STATE, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 4]


def fail_on_one(ranks: Ranks, folder: str, private: str, background: bool) -> list[str]:
    model, optimizer = built(mesh=ranks.mesh)
    kept = Checkpoints(Storage.open(folder), ranks, 3, background)
    kept.save(1, model, optimizer, STATE, {})
    kept.wait()
    if ranks.rank == 1:  # this rank's disk is another one, and full
        kept.storage = Storage.open(private)
    lines = [failing(kept, 2, model, optimizer)]
    kept.storage = Storage.open(folder)
    assert kept.steps() == [1]
    kept.load(1, model, optimizer)
    if ranks.rank == 1:
        _flip(Path(folder) / "step-00000001" / "__1_0.distcp")
    dist.barrier()
    try:
        kept.load(1, model, optimizer)
    except CheckpointError as error:
        lines.append(str(error))
    return lines


@pytest.mark.parametrize("background", [False, True])
def test_what_fails_on_one_rank_is_raised_on_all(tmp_path: Path, background: bool) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        one, other = on(2, tmp_path, fail_on_one, str(tmp_path / "kept"), str(disk), background)
    assert one == other
    assert re.fullmatch(rf"cannot write {disk}/step-00000002: no space left on the device: .*", one[0])
    assert re.fullmatch(rf"{tmp_path}/kept/step-00000001/__1_0.distcp: damaged: its sha256 differs: .*", one[1])


def apart(ranks: Ranks, folder: str) -> str:
    model, optimizer = built(mesh=ranks.mesh)
    kept = Checkpoints(Storage.open(f"{folder}/{ranks.rank}"), ranks, 3, False)
    with pytest.raises(CheckpointError) as told:
        kept.save(1, model, optimizer, STATE, {})
    assert kept.steps() == []
    return str(told.value)


def test_folders_that_are_not_shared_are_told_at_the_first_save(tmp_path: Path) -> None:
    one, other = on(2, tmp_path, apart, str(tmp_path))
    assert one == other
    assert re.fullmatch(rf"{tmp_path}/0/step-00000001/__1_0.distcp: not here, though written: .*", one)


def keep_saving(folder: str) -> None:
    torch.set_num_threads(1)
    model, optimizer = built(ALL)
    kept = alone(folder, keep_last=2, background=True)
    for step in range(1, 10_000):
        kept.save(step, model, optimizer, STATE, {})


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    process = _RANKS.Process(target=keep_saving, args=(str(tmp_path),))
    process.start()
    half: list[Path] = []
    until = time.monotonic() + 60
    while not half and time.monotonic() < until:
        steps = sorted(tmp_path.glob("step-*/__0_0.distcp"))
        if len(steps) > 1 and not (steps[-1].parent / "complete.json").exists():
            os.kill(process.pid or 0, signal.SIGSTOP)
            half = [path.parent for path in steps if not (path.parent / "complete.json").exists()]
            os.kill(process.pid or 0, signal.SIGKILL if half else signal.SIGCONT)
    process.join()
    assert half
    kept = alone(tmp_path, keep_last=2)
    newest = kept.steps()[-1]
    assert f"step-{newest:08d}" not in {path.name for path in half}
    model, optimizer = built(ALL)
    kept.load(newest, model, optimizer)
    kept.save(20_000, model, optimizer, STATE, {})
    assert not any(path.exists() for path in half)
    assert kept.steps()[-1] == 20_000


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving_here(WINNOW_STORE_PATIENCE_S="0") as running:
        yield running


@pytest.mark.parametrize("background", [False, True])
def test_an_object_store(store: Store, background: bool) -> None:
    store.proxy.clear()
    bucket = store.bucket()
    kept = alone(f"s3://{bucket}/run/kept", keep_last=1, background=background)
    model, optimizer = built()
    assert kept.steps() == []
    for step in (1, 2):
        stepped(model, optimizer)
        kept.save(step, model, optimizer, STATE, {"0": {"taken": [step]}})
    kept.wait()
    before = held(model, optimizer)
    files = [".metadata", "__0_0.distcp", "complete.json", "state.json"]
    assert sorted(store.objects(bucket, "run/kept/step-00000002/")) == files
    assert not any(store.objects(bucket, "run/kept/step-00000001/").values())
    puts = [request.path.rpartition("/")[2] for request in store.proxy.log if request.kind in ("PUT", "COMPLETE")]
    assert [name for name in puts if name][-1] == "complete.json"
    assert kept.state(2)["position"] == {"0": {"taken": [2]}}
    other, fresh = built()
    tensors = 4 * sum(parameter.requires_grad for parameter in other.parameters())
    store.proxy.log.clear()
    alone(f"s3://{bucket}/run/kept").load(2, other, fresh)
    must_equal(held(other, fresh), before)
    assert len([request for request in store.proxy.log if request.kind == "GET"]) <= tensors + 8


def test_a_store_that_refuses_is_one_line(store: Store) -> None:
    store.proxy.clear()
    bucket = store.bucket()
    kept = alone(f"s3://{bucket}/kept", background=True)
    model, optimizer = built()
    kept.save(1, model, optimizer, STATE, {})
    kept.wait()
    store.proxy.choose = lambda method, path, _: Fault(status=403) if method in ("PUT", "POST") else None
    kept.save(2, model, optimizer, STATE, {})
    with pytest.raises(CheckpointError, match=rf"\Acannot write s3://{bucket}/kept/step-00000002/\S+: access denied"):
        kept.wait()
    store.proxy.choose = None
    assert kept.steps() == [1]
    kept.load(1, model, optimizer)
    store.put(bucket, {"kept/step-00000001/__0_0.distcp": b"cut"})
    with pytest.raises(CheckpointError, match=rf"s3://{bucket}/kept/step-00000001/__0_0.distcp: damaged: 3 of "):
        kept.load(1, model, optimizer)
    with (
        store.proxy.refuse(),
        pytest.raises(CheckpointError, match=rf"cannot list s3://{bucket}/kept: .*cannot be reached"),
    ):
        kept.steps()


def test_the_hash_of_a_model_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "language").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "language" / "model.safetensors").write_bytes(b"weights")
    first = folder_hash(folder)
    (folder / ".vision-1.partial").write_bytes(b"half")
    (folder / "language" / ".cache").mkdir()
    (folder / "language" / ".cache" / "x").write_bytes(b"x")
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_hash(folder) == folder_hash(tmp_path / "copy") == first
    (folder / "language" / "model.safetensors").rename(folder / "model.safetensors")
    second = folder_hash(folder)
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert len({first, second, folder_hash(folder)}) == 3
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="model.safetensors: cannot be read"):
        folder_hash(folder)
