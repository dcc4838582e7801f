"""The training command on a Ray cluster: `ray job submit -- python -m trainer.launch`, with the same arguments.

The one decision: Ray Train starts the processes, watches them and starts them again; the loop, its checkpoints and its
data position stay ours. They depend on no number of ranks, so a run may go on with fewer workers than it had.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from trainer.config import TrainConfig, config_of
from trainer.errors import CheckpointError, ConfigError, DataError, TrainerError, exit_status
from trainer.train import add_training, train


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.launch",
        description="Trains a stage on a Ray cluster. --out, --init-from and the data must be seen by every node; "
        "checkpoint.folder may be on s3://. Workers that are lost are started again from the last checkpoint.",
        epilog="example:\n"
        "  ray job submit -- python -m trainer.launch --stage 2 --data s3://b/stage2 --init-from /shared/stage1/model "
        "--out /shared/stage2 --workers 4:8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training(made)
    add = made.add_argument
    add("--workers", default="1", metavar="N|MIN:MAX", help="processes, one a GPU where there are; MIN:MAX: elastic")
    add("--retries", type=int, default=3, metavar="N", help="of a run that failed; default: %(default)s")
    add("--cpus", type=int, default=2, metavar="N", help="for each worker; default: %(default)s")
    add("--address", metavar="HOST:PORT", help="of Ray; default: RAY_ADDRESS, else a Ray of its own")
    return made


def workers(text: str) -> int | tuple[int, int]:
    """`8`, or `4:8` for at least 4 and at most 8. Raises `ConfigError`."""
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--workers {text}: write a number, or MIN:MAX such as 4:8")
    if (least := int(parts[0])) > (most := int(parts[-1])):
        raise ConfigError(f"--workers {text}: {least} is more than {most}")
    return least if len(parts) == 1 else (least, most)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_status(lambda: _launch(options), "stopped; the last checkpoint stands")


def _launch(options: argparse.Namespace) -> None:
    from trainer.data.source import open_source
    from trainer.model.folder import load_config

    # What a user can have got wrong is found here, once, and not by every worker at every retry.
    config, count = config_of(options), workers(options.workers)
    load_config(options.init_from)
    for uri in config.data.manifests:
        open_source(uri)
    _on_ray(config, options, count)
    sys.stdout.write(f"model: {options.out / 'model'}\n")


def _on_ray(config: TrainConfig, options: argparse.Namespace, count: int | tuple[int, int]) -> None:
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and "ray" not in sys.modules:
        # Ray's own default for a local start, said aloud: other users of this machine must not reach it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from trainer.parallel import PATIENCE

    if not ray.is_initialized():
        try:
            ray.init(address=address, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"no Ray at {address!r}: {error}: check --address, or leave it out") from error
    there = ray.cluster_resources()
    gpu, least = there.get("GPU", 0) > 0, count if isinstance(count, int) else count[0]
    each = {"CPU": options.cpus, **({"GPU": 1} if gpu else {})}
    have = {name: int(there.get(name, 0)) for name in each}
    if lacks := [name for name, amount in each.items() if least * amount > have[name]]:
        lacking = f"{least} workers of {each[lacks[0]]} {lacks[0]} each, Ray has {have[lacks[0]]}"
        if address == "local":
            raise ConfigError(f"{lacking}: fewer --workers, or fewer --cpus")
        sys.stderr.write(f"waiting for the cluster to grow: {lacking}\n")
    # Whether to try again is decided below, and told.
    quiet = {"failure_config": FailureConfig(max_failures=0), "logging_config": LoggingConfig(log_level="CRITICAL")}
    arguments = {"config": config, "init_from": options.init_from, "out": options.out, "profile": options.profile}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"folder": os.getcwd(), "arguments": arguments},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=gpu, resources_per_worker=each),
        run_config=RunConfig(name="ray", storage_path=str(options.out.resolve()), **quiet),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=PATIENCE),
    )
    line = ""
    for left in range(max(0, options.retries), -1, -1):
        try:
            trainer.fit()
            break
        except (SystemExit, RayActorError):  # what Ray makes of Ctrl-C
            raise KeyboardInterrupt from None
        except TrainingFailedError as error:
            failed = [*getattr(error, "worker_failures", {}).values(), error]
            mistake = next((each for each in failed if isinstance(each, TrainerError)), None)
            # Where a worker is lost, others may tell of files or data; what is said twice is meant.
            if mistake and (not left or str(mistake) == line or not isinstance(mistake, CheckpointError | DataError)):
                raise mistake from error
            line = str(mistake or failed[0]).strip().partition("\n")[0]
            if not left:
                raise TrainerError(f"training failed, after {options.retries} retries: {line}") from error
            sys.stderr.write(f"failed: {line}: started again from the last checkpoint\n")
    if not (options.out / "model").exists():
        raise KeyboardInterrupt


def _work(given: dict[str, Any]) -> None:
    """One worker: the same loop. Ray warns of a machine that will be taken away; it starts the run again by itself."""
    from ray.train import get_preemption_info

    os.chdir(given["folder"])  # paths are said as they were to the launcher, and kept so in checkpoints
    train(**given["arguments"], warned=lambda: get_preemption_info() is not None)


if __name__ == "__main__":
    sys.exit(main())
