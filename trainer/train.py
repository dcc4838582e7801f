"""One stage of training, from a model folder and shards to a model folder.

    python -m trainer.train --stage 1 --data runs/laion_en --init-from models/qwen-vl --out runs/stage1

The one decision: everything is counted in sums. A forward gives the loss of each supervised token; gradients are sums
over all of them; once a step the sums of all ranks are divided by the number of all tokens. So the same recipe gives
the same steps on 1 and on 512 GPUs, whatever share of the tokens a rank or a micro-batch has.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from trainer.config import TrainConfig, add_arguments, config_of
from trainer.errors import ConfigError, TrainerError, exit_status

if TYPE_CHECKING:
    from trainer.model.vlm import VisionLanguageModel
    from trainer.parallel import Ranks
    from trainer.tokenizer import Tokenizer

# Steps between collections of Python's garbage: it would come at any moment, on each rank at another one, and all wait.
_COLLECT = 1000
Asked = Callable[[], bool]


def train(
    config: TrainConfig, init_from: Path, out: Path, profile: bool = False, warned: Asked = lambda: False
) -> Path | None:
    """Trains a stage and gives its model folder; None where it was asked to stop, with a checkpoint to go on from.

    init_from: a complete model folder. out: gets `model`, `checkpoints`, `metrics.jsonl`. profile: a trace of steps 3
    to 5 as well. warned: asked on all ranks at once whether a machine is about to go; a checkpoint is kept then. Raises
    `TrainerError`: one line for whatever a user can mend.
    """
    from trainer import parallel

    if (out / "model").resolve() == init_from.resolve():
        raise ConfigError(f"--out {out}: the stage's model would be written over --init-from {init_from}: name another")
    ranks = parallel.start(config.parallel)
    try:
        with _asked_to_stop() as stop:
            return _train(config, init_from, out, profile, ranks, stop, warned)
    finally:
        gc.enable()
        gc.unfreeze()
        parallel.stop()


def _train(
    config: TrainConfig, init_from: Path, out: Path, profile: bool, ranks: Ranks, stop: Event, warned: Asked
) -> Path | None:
    import torch

    from shards.storage import Storage
    from trainer.checkpoint import Checkpoints
    from trainer.data.loader import Loader
    from trainer.evaluate import HeldOut
    from trainer.metrics import Log, Meter
    from trainer.model.folder import load_config, own_tokenizer
    from trainer.optim import build_optimizer, lr_at, module_norms, set_lr, update
    from trainer.parallel import add_up, hurry, load_sharded
    from trainer.resume import must_be_the_same, origin_of, where_to_begin

    # Where it begins: the model, or a checkpoint that goes with it.
    architecture = load_config(init_from).model_copy(update={"image_size": config.image_size})
    tokenizer = own_tokenizer(init_from, architecture)
    storage = Storage.open(config.checkpoint.folder or str(out / "checkpoints"))
    kept = Checkpoints(storage, ranks, config.checkpoint.keep_last, config.checkpoint.background)
    origin = origin_of(config, init_from, tokenizer, ranks)
    step, before = where_to_begin(config, kept, origin, ranks)
    loader = Loader(config, architecture, tokenizer, ranks.rank, ranks.world, step, before.get("position"))
    origin["data"] = loader.fingerprints
    must_be_the_same("data", before, origin, kept)
    if step == loader.total and (out / "model").exists():
        return out / "model"

    # The model, sharded over the ranks, and what makes it better.
    model = load_sharded(init_from, config, ranks)
    optimizer = build_optimizer(model, config.optim)
    if step:
        kept.load(step, model, optimizer)
    held_out = HeldOut(config, architecture, tokenizer, ranks) if config.eval.manifests else None
    log = Log(out, config.log, loader.total, ranks.rank, step)
    meter = Meter(config, architecture, ranks)
    position: dict[str, Any] = {}  # of this rank's lanes; whole after a step
    taught, saved_for_going = 0, False
    # On the device, and looked at only when a line is logged: steps skipped in all, now in a row, in a row at most.
    skipped = torch.zeros(3, device=ranks.device)

    micros = iter(loader)
    micro = next(micros, None)
    with closing(log), _profiler(profile and not ranks.rank, out) as trace:
        while micro is not None:
            batch = micro.batch.to(ranks.device)
            losses = model(batch)
            losses.sum().backward()
            meter.add(batch, micro.counts, losses)
            taught += len(batch.taught)
            position.update(micro.position)
            done, ended = micro.step + 1, micro.last
            with meter.spending("data"):  # the device is at work on the backward
                micro = next(micros, None)
            if not ended:
                continue

            # The step: all ranks' sums, divided by all their tokens.
            tokens = add_up(torch.tensor(float(taught), device=ranks.device), ranks)
            lr = lr_at(done - 1, config.optim, loader.total)
            set_lr(optimizer, lr)
            over = done == loader.total
            told = over or done % config.log.every == 0
            norms = module_norms(model, tokens) if told else {}
            norm = update(model, optimizer, tokens, config.optim.clip)
            optimizer.zero_grad()
            taught = 0
            wrong = (~norm.isfinite()).float()
            row = (skipped[1] + 1) * wrong
            skipped = torch.stack([skipped[0] + wrong, row, torch.maximum(skipped[2], row)])
            if done == step + 1:
                gc.collect()
                gc.freeze()
                gc.disable()
                hurry(ranks, config.parallel.timeout)
            elif done % _COLLECT == 0:
                gc.collect()
            if trace is not None:
                trace.step()

            if told:
                values = {"lr": lr, "grad_norm": norm.item(), "skipped": skipped[0].item()}
                values |= {f"grad_norm/{name}": each.item() for name, each in norms.items()}
                log.step(done, meter.values() | values)
                if skipped[2] >= config.optim.nonfinite:
                    said = f"{int(skipped[2])} steps in a row up to step {done} had a gradient that is no finite number"
                    mend = f"look at the data, lower optim.lr (now {config.optim.lr}), and go on from step"
                    raise TrainerError(f"{said} and changed nothing: {mend} {max(kept.steps(), default=0)}")
            if held_out and (over or done % config.eval.every == 0):
                with meter.spending("evaluation"):
                    log.step(done, held_out.losses(model))
                    log.text(done, held_out.speak(model))
            look = done % config.log.preempt == 0
            # Asked on any rank, all of them leave together.
            leave = look and add_up(torch.tensor(float(stop.is_set()), device=ranks.device), ranks).item() > 0
            going = look and not saved_for_going and warned()
            saved_for_going |= going
            if over or leave or going or done % config.checkpoint.every == 0:
                kept.save(done, model, optimizer, origin, position)
            if leave and not over:
                kept.wait()
                said = f"asked to stop: step {done:,} of {loader.total:,} is kept; the same command goes on\n"
                sys.stderr.write("" if ranks.rank else said)
                return None
    kept.wait()
    return _write(model, init_from, architecture, tokenizer, out / "model", ranks)


def _write(
    model: VisionLanguageModel, init_from: Path, architecture: Any, tokenizer: Tokenizer, folder: Path, ranks: Ranks
) -> Path:
    """Writes the complete model folder; what was frozen comes from where it was read, and is bit-equal to it.

    Rank 0 has all that trains in the CPU's memory before it writes: no other rank waits for its disk.
    """
    from trainer.model.folder import read_tensors, write_model, writing
    from trainer.parallel import full_tensors, same

    trained = {name: tensor for name, tensor in full_tensors(model) if not ranks.rank}

    def write() -> Path:
        partial = folder.with_name(f".{folder.name}.partial")
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        tensors = ((name, trained.get(name, tensor)) for name, tensor in read_tensors(init_from))
        write_model(partial, architecture, tensors, tokenizer)
        with writing(folder):
            return partial.rename(folder)

    return same(ranks, write)


@contextmanager
def _asked_to_stop() -> Iterator[Event]:
    """Set by SIGTERM or the first Ctrl-C; the second one ends at once. Where signals cannot be had, never set."""
    event, reachable = Event(), threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if reachable}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number: int, frame: object) -> None:
        event.set()
        as_before()

    for number in before:
        signal.signal(number, asked)
    try:
        yield event
    finally:
        as_before()


def _profiler(wanted: bool, out: Path) -> Any:
    """torch's profiler over steps 3 to 5; a trace for chrome://tracing and TensorBoard in `trace`."""
    if not wanted:
        return nullcontext()
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    steps, ready = schedule(wait=1, warmup=1, active=3, repeat=1), tensorboard_trace_handler(str(out / "trace"))
    return profile(schedule=steps, on_trace_ready=ready, profile_memory=True, record_shapes=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description="Trains one of the three stages on shards, from one complete model folder to the next. Killed or "
        "asked to stop, the same command goes on from the last checkpoint, on any number of ranks.",
        epilog="examples:\n"
        "  python -m trainer.train --stage 1 --data runs/demo --init-from data/demo/model --out runs/stage1 "
        "--config demo/training.yaml\n"
        "  torchrun --nproc-per-node 8 -m trainer.train --stage 2 --data s3://b/stage2 --init-from runs/stage1/model "
        "--out runs/stage2 optim.lr=3e-5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training(made)
    return made


def add_training(made: argparse.ArgumentParser) -> None:
    """The arguments of this command, which launching has too."""
    add_arguments(made)
    made.add_argument("--init-from", required=True, type=Path, metavar="MODEL", help="a complete model folder")
    made.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets model/, checkpoints/, metrics.jsonl")
    made.add_argument("--profile", action="store_true", help="writes a trace of steps 3 to 5 to DIR/trace")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_status(lambda: _run(options), "stopped; the last checkpoint stands")


def _run(options: argparse.Namespace) -> None:
    if folder := train(config_of(options), options.init_from, options.out, options.profile):
        sys.stdout.write(f"model: {folder}\n")


if __name__ == "__main__":
    sys.exit(main())
