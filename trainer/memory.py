"""The memory of one GPU of many, by simulation on a CPU.

The one decision: the real model, sharded by the code that training runs, does one forward and backward of the largest
micro-batch on tensors that have shapes and no memory, while torch's own tracker adds up what is alive. AdamW's moments
alone are reckoned by hand: tracked, its fake temporaries would count too. What CUDA and NCCL take for themselves, and
what the allocator loses between blocks, is in no such number; what `parallel.compile` saves is not, either.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.model.config import ModelConfig


@dataclass(frozen=True)
class Work:
    """What one GPU does in a step: `forwards` of `items` samples or packs each."""

    model: ModelConfig
    run: TrainConfig
    gpus: int
    items: int
    forwards: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the peak of forward and backward, with the optimizer's state.

    weights, gradients: its shards, and tables. moments: AdamW's two, fp32. activations: what the backward waits for.
    gathered: weights of blocks that are whole just then. temporary: all others, of the backward.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    gathered: int
    temporary: int

    @property
    def peak(self) -> int:
        return sum(vars(self).values())


def share(model: ModelConfig, run: TrainConfig, gpus: int) -> Work:
    """What one GPU does, as the loader deals it out; of GPUs beyond `data.lanes` nothing, they are not counted.

    Raises `ConfigError` for shards that do not divide the GPUs.
    """
    gpus = min(gpus, run.data.lanes)
    run.parallel.sides(gpus)
    each, part, together, lanes = run.dealt(gpus)
    return Work(model, run, gpus, together * part, -(-lanes // together) * (each // part))


def simulate(works: Sequence[Work]) -> list[Memory]:
    """Each in its own process, which its fake group does not outlive; `qwen-vl`: a minute. Raises `TrainerError`."""
    count = min(len(works), os.cpu_count() or 1)
    try:
        with ProcessPoolExecutor(count, get_context("spawn"), max_tasks_per_child=1) as pool:
            return list(pool.map(_simulate, works))
    except BrokenProcessPool as error:
        raise ConfigError("the simulation of memory was killed: it needs 1.5 GB for a model of 10 B entries") from error


def _simulate(work: Work) -> Memory:
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed.device_mesh import init_device_mesh

    from trainer import parallel
    from trainer.data.batch import Encoded, pack
    from trainer.model import attention

    try:  # private: made for 2.14
        from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise ConfigError(f"torch {torch.__version__} has no FSDPMemTracker: memory is simulated with 2.14") from error

    # This process does nothing else. Not eager code would be compiled for fake tensors; nothing is read from a folder;
    # and what CUDA runs in bfloat16 is the fused kernel, which has a shape for fake tensors of any device.
    run = work.run.model_copy(update={"parallel": work.run.parallel.model_copy(update={"compile": False})})
    vars(parallel).update(load_config=lambda folder: work.model, fitting_tensors=lambda folder, model: ())
    if run.parallel.precision == "bfloat16":
        vars(attention).update(_looped=attention._fused)
    dist.init_process_group("fake", rank=0, world_size=work.gpus, store=FakeStore())
    sides = run.parallel.sides(work.gpus)
    mesh = init_device_mesh("cpu", (*sides.values(),), mesh_dim_names=(*sides,))
    # The largest batch: all tokens but the images' placeholders have labels.
    queries, token, side = work.model.adapter.queries, work.model.image_token, run.image_size
    images, pixels = run.data.most_images(queries), torch.zeros(3, side, side, dtype=torch.uint8)
    shown, said = images * queries, run.data.length - images * queries
    sample = Encoded((token,) * shown + (0,) * said, (False,) * shown + (True,) * said, images, "text")
    batch = pack([sample] * work.items, [pixels] * images * work.items, side, token, queries)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ranks = parallel.Ranks(0, work.gpus, 0, torch.device("cpu"), mesh)
        model: Any = parallel.load_sharded(Path(), run, ranks)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if work.forwards > 1:  # the sums of the forwards before are there
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        tracker: Any = FSDPMemTracker(model)
        tracker.track_inputs(tuple(each for each in vars(batch).values() if isinstance(each, torch.Tensor)))
        with tracker:
            model(batch).sum().backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    found = {getattr(kind, "value", kind): size for kind, size in peak.items()}
    return Memory(
        found["Sharded Param"] + found["Buffer"],
        found["Sharded Grad"],
        8 * sum(parameter.to_local().numel() for parameter in trained),
        found["Activation"] + found["Inputs"],
        found["Unsharded Param"] + found["All Gather"],
        found["Unsharded Grad"] + found["Reduce Scatter"] + found["Temp"],
    )
