"""The ranks of a run, and a model sharded over them: FSDP2, or HSDP where `parallel.shard` ranks hold one copy.

The one decision: every rank reads the model folder itself, tensor by tensor, and keeps the rows that are its own: none
holds the whole model, none waits for another's disk. Gradients are summed, not averaged: what to divide by only the
step knows. Without a group of processes the same code runs unsharded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from trainer.config import Parallel, TrainConfig
from trainer.errors import ConfigError, TrainerError
from trainer.model.folder import fitting_tensors, load_config, named_tensors
from trainer.model.vlm import VisionLanguageModel, build_model, refill, set_trainable

# Seconds until a rank gives up that waits for others to read the model and to compile it; also for checkpoints.
PATIENCE = 3600
Made = TypeVar("Made")


@dataclass(frozen=True)
class Ranks:
    """This process among the others of a run.

    rank of `world`; local: among those of its machine. mesh: over all ranks, of one dimension or of two (replicate,
    shard); None alone on a CPU in float32. gloo: a group for objects and checkpoints, beside what the device does.
    """

    rank: int
    world: int
    local: int
    device: torch.device
    mesh: DeviceMesh | None = None
    gloo: dist.ProcessGroup | None = None


def start(parallel: Parallel) -> Ranks:
    """Joins the other ranks: of a group that there is already (Ray Train's), of torchrun's environment, or none.

    Raises `ConfigError` where `parallel.shard` does not divide the ranks, a rank has no GPU, or they do not meet.
    """
    there, cuda = dist.is_initialized(), torch.cuda.is_available()
    world = dist.get_world_size() if there else int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    sides = parallel.sides(world)
    if cuda and not there:  # who made the group has chosen the device too
        if local >= (count := torch.cuda.device_count()):
            raise ConfigError(f"local rank {local} has no GPU: there are {count}: torchrun --nproc-per-node {count}")
        torch.cuda.set_device(local)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    if not there and world == 1 and not cuda and parallel.precision == "float32":
        return Ranks(0, 1, 0, device)
    if not there:  # alone too: mixed precision is FSDP's
        store: Any = vars(dist)["HashStore"]  # asks for no port; torch's types do not know it
        alone = {"store": store(), "rank": 0, "world_size": 1} if world == 1 else {}
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE), **alone)
        except (ValueError, dist.DistError) as error:
            raise ConfigError(f"{world} ranks do not meet: {str(error).splitlines()[0]}: start torchrun") from error
    mesh = init_device_mesh(device.type, (*sides.values(),), mesh_dim_names=(*sides,))
    gloo = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))
    return Ranks(dist.get_rank(), world, local, device, mesh, cast(dist.ProcessGroup, gloo))


def stop() -> None:
    """Leaves the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def hurry(ranks: Ranks, seconds: int) -> None:
    """After the first step nothing takes long any more: a rank that waits for others gives up after `seconds`.

    All ranks call it. Objects and checkpoints keep their patience: a slow disk is no reason to end.
    """
    if ranks.mesh is None:
        return
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier(ranks.gloo)  # no rank is still at work on what may take long
    for group in (None, *ranks.mesh.get_all_groups()):
        getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(timedelta(seconds=seconds), group)


def add_up(tensor: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks, in place."""
    if ranks.world > 1:
        dist.all_reduce(tensor)
    return tensor


def same(ranks: Ranks, make: Callable[[], Made]) -> Made:
    """What rank 0 makes, on every rank; a `TrainerError` of its making is raised on every rank too."""
    if ranks.gloo is None:
        return make()
    told: list[Any] = [None]
    try:
        told = [None if ranks.rank else make()]
    except TrainerError as error:
        told = [error]
    dist.broadcast_object_list(told, src=0, group=ranks.gloo)
    if isinstance(told[0], TrainerError):
        raise told[0]
    return cast(Made, told[0])


def together(counts: Counter[str], ranks: Ranks) -> Counter[str]:
    """The counts of all ranks."""
    told: list[Any] = [counts] * ranks.world
    if ranks.gloo is not None:
        dist.all_gather_object(told, counts, group=ranks.gloo)
    return sum(told, Counter())


def load_sharded(folder: Path, config: TrainConfig, ranks: Ranks) -> VisionLanguageModel:
    """The model of a complete folder as a run of these settings trains it: frozen, sharded, in training mode.

    What trains is float32; in bfloat16 what is frozen is kept in it, and every module computes in it. Names of
    parameters are the folder's. Raises `ModelError` as `load_model` does; packing is not tried, as it is there.
    """
    settings = config.parallel
    model = build_model(load_config(folder).model_copy(update={"image_size": config.image_size}), "meta")
    set_trainable(model, config.trains, config.projection_with)
    half = settings.precision == "bfloat16"
    for parameter in (each for each in model.parameters() if half and not each.requires_grad):
        parameter.data = parameter.data.to(torch.bfloat16)
    towers: tuple[Any, Any] = model.vision.transformer.resblocks, model.language.base_model.layers
    for name, tower in zip(("vision", "language"), towers, strict=True):
        for block in tower:
            if settings.compile:  # the innermost: Dynamo skips what `checkpoint` calls unless it was compiled before
                block.forward = torch.compile(block.forward)
            if name in settings.recompute:  # nothing is drawn at random: no generator's state has to be kept
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if ranks.mesh is not None:
        _shard(model, [*towers[0], *towers[1]], ranks.mesh, half)
    model.to_empty(device=ranks.device)
    refill(model, ranks.device)
    held = named_tensors(model)
    for name, tensor in fitting_tensors(folder, model):
        mine, part = held[name], tensor
        if isinstance(mine, DTensor):
            rows = -(-len(tensor) // mine.device_mesh.shape[-1])  # as torch.chunk has it: the last may have none
            first = rows * mine.device_mesh.get_local_rank("shard")
            mine, part = mine.to_local(), tensor[first : first + rows]
        mine.copy_(part)
    return model.train()


def _shard(model: nn.Module, blocks: list[Any], mesh: DeviceMesh, half: bool) -> None:
    """Each block a unit, and the root with all else: embedding and head may be one tensor, and run in its forward."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for unit in (*blocks, model):
        sharded = fully_shard(unit, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # else the sum is a product too, which gloo has not
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])


def full_tensors(model: VisionLanguageModel) -> Iterator[tuple[str, Tensor]]:
    """What trains, whole and on the CPU, one by one; every rank takes part. Names as in a model folder.

    What is frozen is not given: it may have been rounded, and the folder that it came from has it to the bit.
    """
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in named_tensors(model).items():
        if name in trains:
            yield name, (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
