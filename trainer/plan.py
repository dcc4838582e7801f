"""What a run costs before anything is allocated: parameters, bytes, FLOPs; on some GPUs memory, hours, images to feed.

The one decision: parameters are counted on the real modules, built on the meta device; FLOPs are reckoned in the open
from shapes. A multiply-add is 2 FLOPs. What is frozen costs 1 x its forward where no gradient passes, 2 x where one
does; what trains costs 3 x. Of the data nothing can be known before: it is measured on some, or said to be assumed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config import BatchSize, TrainConfig, add_arguments, config_of
from trainer.devices import DEVICES, device
from trainer.errors import ConfigError, exit_status
from trainer.memory import Memory, Work, share, simulate
from trainer.model.config import QWEN_VL, ModelConfig, tiny

TRAINED_BYTES, FROZEN_BYTES = 16, 2  # fp32 weight, gradient, two moments of AdamW; frozen weights are bf16
PAPER = {1: 1_400_000_000, 2: 76_800_000, 3: 350_000}  # samples of an epoch: Table 2, Table 3, section 3.3
# Without data: tokens of a caption with its prompt, images of a pack by the stage. With data: samples that are read.
CAPTION, IMAGES, MEASURED = 42, {1: 1.0, 2: 5.0, 3: 3.0}, 2048
# GPUs of a node; bytes/s of one: inside it (NVLink 4, one way), and out of it (400 Gb/s), as in a DGX H100.
NODE, INSIDE, OUTSIDE = 8, 450e9, 50e9
TABLE, GIB = (8, 64, 512), 2**30
ABOUT = (
    "`make plan-docs` writes this page. No GPU was used: memory is simulated on a CPU (the real model, sharded as in",
    "training, on tensors without memory, its largest micro-batch, the optimizer's state), FLOPs are counted.",
)


class Cost(NamedTuple):
    """One stage. `state_bytes`: weights, gradients and moments, all GPUs together. FLOPs of one image, and of one token
    on average over a segment of `data.length`, image placeholders among them.
    """

    trained: int
    frozen: int
    state_bytes: int
    image_flops_forward: int
    image_flops: int
    token_flops_forward: int
    token_flops: int


class Mean(NamedTuple):
    """Of a sample, or a pack. samples: in it, None where nobody knows; said: where all this is from."""

    images: float
    tokens: float
    samples: float | None
    said: str


def count(config: ModelConfig) -> dict[str, int]:
    """Entries of each module, on the meta device; `positions`: the adapter's fixed table. Raises `ModelError`."""
    from trainer.model.vlm import build_model

    model = build_model(config, "meta")
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {**parts, "positions": model.adapter.pos_embed.numel()}


def image_flops(config: ModelConfig, size: int) -> dict[str, int]:
    """FLOPs of the forward of one image of `size` px, by module. Softmax, norms and activations are left out."""
    vision, width, queries = config.vision, config.width, config.adapter.queries
    patches, wide = vision.grid(size) ** 2, vision.width
    mlp = int(wide * vision.mlp_ratio)
    # in_proj 3W², out_proj W², MLP 2 x W x mlp; scores and their sum over the values: T² x W each.
    block = 2 * patches * (4 * wide**2 + 2 * wide * mlp) + 4 * patches**2 * wide
    tower = 2 * patches * 3 * vision.patch_size**2 * wide + vision.layers * block
    keys = 2 * patches * (wide * width + 2 * width**2)
    asked = 2 * queries * 2 * width**2 + 4 * queries * patches * width
    return {"vision": tower, "adapter": keys + asked, "projection": 2 * queries * width**2}


def token_flops(config: ModelConfig, length: int, parameters: int) -> int:
    """FLOPs of the forward of one token of the language model, the mean over a causal segment of `length` tokens.

    parameters: of the language model. The head is reckoned for every token, the look-up of the embedding is free.
    """
    from transformers import AutoConfig

    read = AutoConfig.for_model(**deepcopy(config.language))  # with what is left to the family's defaults
    multiplied = parameters if read.tie_word_embeddings else parameters - read.vocab_size * config.width
    wide = read.num_attention_heads * (getattr(read, "head_dim", None) or config.width // read.num_attention_heads)
    # Each token sees (length + 1) / 2 on average; scores and sum are 2 FLOPs a channel each.
    return int(2 * multiplied + read.num_hidden_layers * 2 * (length + 1) * wide)


def trained(run: TrainConfig) -> set[str]:
    """The modules that train; ln_post and proj, the `projection`, with one of them."""
    return {*run.trains, *(["projection"] if run.projection_with in run.trains else [])}


def cost(config: ModelConfig, run: TrainConfig, parts: dict[str, int]) -> Cost:
    """A stage by its settings. parts: what `count` gave. Raises `ModelError` for images that patches do not divide."""
    images, trains = image_flops(config, run.image_size), trained(run)
    token = token_flops(config, run.data.length, parts["language"])
    passes, frozen = dict[str, int](), 1
    for name in ("vision", "adapter", "projection", "language"):  # gradients go down to the lowest that trains
        passes[name] = 3 if name in trains else frozen
        frozen = 2 if name in trains else frozen
    held = sum(parts[name] for name in trains)
    rest = sum(parts.values()) - held
    training = sum(passes[name] * flops for name, flops in images.items())
    flops = (sum(images.values()), training, token, passes["language"] * token)
    return Cost(held, rest, TRAINED_BYTES * held + FROZEN_BYTES * rest, *flops)


def _mean(config: ModelConfig, run: TrainConfig, model: str) -> Mean:
    """Measured; without data full packs with the images of `IMAGES`, or an image with a caption."""
    one, length = config.adapter.queries + 2, run.data.length
    if run.data.manifests:
        return measured(config, run, Path(model))
    if run.data.pack:
        return Mean(min(IMAGES[run.stage], run.data.images or length // one), length, None, "assumed")
    return Mean(1.0, min(one + CAPTION, length), 1.0, "assumed")


def measured(config: ModelConfig, run: TrainConfig, folder: Path) -> Mean:
    """Of the first samples of a run with one lane, mixed and packed as it reads them. Raises `TrainerError`."""
    from trainer.data.loader import Loader
    from trainer.model.folder import own_tokenizer

    data = run.data.model_copy(update={"lanes": 1, "workers": 0})
    alone: dict[str, Any] = {"data": data, "batch": BatchSize(size=1), "steps": MEASURED, "epochs": None}
    alone["image_size"] = config.vision.patch_size  # what images look like does not count
    loader = Loader(run.model_copy(update=alone), config, own_tokenizer(folder, config), 0, 1)
    counts, most = Counter[str](), min(MEASURED, sum(source.nsamples for source in loader.sources))
    for micro in loader:
        counts.update(micro.counts)
        if counts["drawn"] >= most:
            break
    tokens, samples, length = counts["tokens"], counts["samples"], run.data.length
    if not samples:
        raise ConfigError(f"none of {counts['drawn']:,} samples can be trained on with data.length={length}")
    rows = counts["packs"] or samples
    said = f"measured on {counts['drawn']:,} samples of {tokens / samples:,.1f} tokens"
    said += f"; {samples / rows:.2f} in a pack, {tokens / rows / length:.1%} full" if run.data.pack else ""
    return Mean(counts["images"] / rows, tokens / rows, samples / rows, said)


def planned(
    work: Work, asked: int, made: Cost, mean: Mean, memory: Memory, gpu: str, mfu: float
) -> tuple[dict[str, float], list[str]]:
    """Numbers, by names with their units, and warnings. asked: GPUs, of which `work` has those that can take part."""
    run, gpus, (have, speed) = work.run, work.gpus, device(gpu)
    lanes, size, peak, tokens = run.data.lanes, run.batch.size, memory.peak, work.items * mean.tokens
    busy = lanes / (-(-lanes // gpus) * gpus)
    flops = size * (mean.images * made.image_flops + mean.tokens * made.token_flops)
    seconds = flops / (gpus * speed * mfu * busy)
    told: dict[str, float] = {"GPUs": gpus, "batch": size, "forwards a step": work.forwards, "of": work.items}
    told |= {"tokens of each": mean.tokens, "images of each": mean.images, "memory, GiB": peak / GIB}
    told |= {f"  {name}": part / GIB for name, part in vars(memory).items()}
    told |= {"PFLOP a step": flops / 1e15, "s a step": seconds, "images/s": size * mean.images / seconds}
    told["images/s of a GPU"] = told["images/s"] / gpus
    if run.steps:
        hours = run.steps * seconds / 3600
        told |= {"steps": run.steps, "ZFLOP": run.steps * flops / 1e21, "hours": hours, "GPU-hours": hours * gpus}
    if mean.samples:
        told["steps of the paper's samples"] = PAPER[run.stage] / mean.samples / size
    # A weight of 2 bytes gives 2 FLOPs with each token of a forward.
    shards = run.parallel.shard or gpus
    needed = speed * mfu / (INSIDE if shards <= NODE else OUTSIDE)
    fits, wider = "does not fit" if peak > have else "is nearly all of", f"parallel.shard={NODE} or " * (shards > NODE)
    odd, full = work.items != run.batch.micro, run.parallel.precision == "float32"
    warnings = {
        f"{asked} GPUs are more than data.lanes, {lanes}: training refuses, the numbers are of {gpus}": asked > gpus,
        f"data.lanes {lanes} are no multiple of {gpus} GPUs: {1 - busy:.1%} of the work is fillers": busy < 1,
        f"batch.micro {run.batch.micro} cannot be had of {size // lanes} a lane: a forward has {work.items}": odd,
        f"{peak / GIB:.1f} GiB {fits} the GPU's {have / GIB:.1f}: batch.micro below {run.batch.micro}, "
        "parallel.recompute=[vision,language], or more GPUs": peak > 0.9 * have,
        f"few tokens, {tokens:,.0f} a forward: under {needed:,.0f} it takes longer to gather the weights of {shards} "
        f"shards than to use them: {wider}a larger batch.micro": shards > 1 and tokens < needed,
        "epochs depend on the data: for hours name steps=N epochs=null": run.steps is None,
        "parallel.precision is float32: time is reckoned with the speed of bfloat16": full,
    }
    return told, [line for line, so in warnings.items() if so]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.plan",
        description="Parameters, what trains per stage, bytes and FLOPs of a model; with --gpus memory by simulation, "
        "hours, images to feed, and what to mind. No GPU is asked, nothing is allocated.",
        epilog="example:\n  python -m trainer.plan qwen-vl --stage 2 --gpus 64 --device h100 parallel.shard=8\n"
        "  python -m trainer.plan runs/stage1/model --stage 2 --gpus 64 --data s3://b/stage2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", metavar="MODEL", help="qwen-vl, tiny, or a model folder")
    add_arguments(made, stage=False)
    made.add_argument("--gpus", type=int, metavar="N", help="how many train")
    made.add_argument("--device", default="h100", metavar="NAME", help=f"{', '.join(DEVICES)}; default: %(default)s")
    made.add_argument("--mfu", type=float, default=0.4, metavar="X", help="share of its FLOP/s; default: %(default)s")
    made.add_argument("--table", action="store_true", help="all stages on 8, 64 and 512 GPUs, as a page of the docs")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_status(lambda: _plan(options))


def _plan(options: argparse.Namespace) -> None:
    if (options.gpus is not None and (options.gpus < 1 or not options.stage)) or (options.data and not options.gpus):
        raise ConfigError("--gpus, at least 1, needs a --stage; --data needs --gpus")
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu {options.mfu:g}: a share above 0, of at most 1")
    device(options.device)
    if options.data and options.model in ("qwen-vl", "tiny"):
        raise ConfigError(f"--data: {options.model} has no tokenizer to measure it with: name a model folder")
    config = _config(options.model)
    stages = [options.stage] if options.stage else [1, 2, 3]
    runs = [config_of(argparse.Namespace(**{**vars(options), "stage": stage})) for stage in stages]
    parts = count(config)
    costs = [cost(config, run, parts) for run in runs]
    total = sum(parts.values())
    sizes = [options.gpus] if options.gpus else [*TABLE] if options.table else []
    lines = [f"{config.name}: {total:,} entries, {2 * total / 1e9:,.2f} GB in bf16", ""]
    lines = [f"# `{config.name}` on 8, 64 and 512 GPUs", "", *ABOUT] if options.table else lines
    columns, notes = dict[str, dict[str, Any]](), list[str]()
    if sizes:
        means = [_mean(config, run, options.model) for run in runs]
        lines += [f"Time: {options.mfu:.0%} of the FLOP/s of {options.device}.", ""]
        notes += ["", *(f"- data of stage {run.stage}: {mean.said}" for run, mean in zip(runs, means, strict=True))]
        each = [(*stage, gpus) for stage in zip(runs, costs, means, strict=True) for gpus in sizes]
        works = [share(config, run, gpus) for run, _, _, gpus in each]
        for (run, made, mean, gpus), work, memory in zip(each, works, simulate(works), strict=True):
            name = f"stage {run.stage}, {gpus} GPUs"
            columns[name], warnings = planned(work, gpus, made, mean, memory, options.device, options.mfu)
            notes += [f"- warning, {name}: {warning}" for warning in warnings]
    else:
        lines += [*(f"  {part:<12}{number:>16,}" for part, number in parts.items()), "", ""]
        for run, made in zip(runs, costs, strict=True):
            trains = ", ".join(part for part in parts if part in trained(run))
            shapes = {"trains": trains, "image_size": run.image_size, "length": run.data.length}
            columns[f"stage {run.stage}"] = shapes | made._asdict()
    lines += [*_table(columns), *notes]
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value / 1e9:,.3f} G" if "flops" in name or "bytes" in name else f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _config(name: str) -> ModelConfig:
    from trainer.model.folder import load_config

    if name == "tiny":
        return tiny(4096, 4095, 0)
    return QWEN_VL if name == "qwen-vl" else load_config(Path(name))


def _table(columns: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown that reads well without."""
    labels = list(next(iter(columns.values())))
    cells = [[head, *(_cell(each, column.get(each, "")) for each in labels)] for head, column in columns.items()]
    cells.insert(0, ["", *labels])
    wide = [max(map(len, column)) for column in cells]
    lines = [" | ".join(map(str.ljust, row, wide)) for row in zip(*cells, strict=True)]
    return [f"| {line} |" for line in (lines[0], " | ".join("-" * each for each in wide), *lines[1:])]


if __name__ == "__main__":
    sys.exit(main())
