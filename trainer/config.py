"""A training run in numbers: `stages.yaml`, a file laid over it, single values; checked as a whole.

The one decision: a stage is settings and nothing else. The loop knows no stage: what trains, how samples are packed and
how long all that goes on stands here, is printed in the checkpoint, and can be said again.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, model_validator

from trainer.errors import ConfigError, first_mistake
from trainer.model.config import Positive, Settings

STAGES = Path(__file__).with_name("stages.yaml")
Part = Literal["vision", "adapter", "language"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0)]


class Data(Settings):
    """Where samples come from and how they are joined.

    manifests: data sets, folders or their manifest.json, local or `s3://`. weights: of each, where their shares are
    given instead of their sizes. length: tokens of a sample, of a pack with `pack`: `task` joins samples of one task,
    `any` all kinds, null none. attention: `across` lets a sample of a pack see those before it. images: at most, in one
    pack; null: what the length has room for. bins: packs a lane has open. lanes: independent streams; part of the
    order, while ranks and workers are not. chunk: samples read at once. workers: processes a rank. bad: the share of
    samples that may be broken before the run stops.
    """

    manifests: tuple[str, ...] = ()
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    length: Positive = 2048
    pack: Literal["task", "any"] | None = None
    attention: Literal["segments", "across"] = "segments"
    images: Positive | None = None
    bins: Positive = 8
    lanes: Positive = 1024
    chunk: Positive = 256
    workers: Whole = 4
    seed: Whole = 0
    bad: Fraction = 0.01
    labels: Literal["paper", "released"] = "paper"
    caption_prompt: bool = True

    def most_images(self, queries: int) -> int:
        """Of a sample or a pack: as many as fit into its length, with their two tags, or fewer by `images`."""
        room = self.length // (queries + 2)
        return min(self.images or room, room)


class Dealt(NamedTuple):
    """A step on one of some ranks. each: items (samples or packs) of a lane. part: of them in one forward, of
    `together` lanes. lanes: of the rank, missing ones among them.
    """

    each: int
    part: int
    together: int
    lanes: int


class BatchSize(Settings):
    """size: samples, or packs, of one step on all ranks together. micro: of one forward on one rank, at most."""

    size: Positive
    micro: Positive = 1


class Optim(Settings):
    """AdamW on a cosine with warm-up; defaults are Table 8's, the same in all stages.

    layer_decay: block i of n of the tower has lr x layer_decay^(n - i), what is before block 0 one power more.
    eyes: learning rate of tower, adapter, ln_post and proj, as a factor of lr (the paper: 1), times their layer decay.
    nonfinite: steps in a row whose gradient may be NaN or infinite; they are skipped.
    """

    lr: Annotated[float, Field(gt=0)]
    min_lr: Annotated[float, Field(ge=0)]
    warmup: Whole
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    eyes: Annotated[float, Field(gt=0)] = 1.0
    nonfinite: Positive = 5


class Parallel(Settings):
    """precision: of compute and of frozen weights; what trains is kept, and reduced, in float32. shard: ranks that
    share one copy (HSDP); null: all. recompute: parts whose activations are computed again in the backward. compile:
    blocks and tower, in fixed shapes. timeout: seconds until a rank that waits for others gives up, after step 1.
    """

    precision: Literal["bfloat16", "float32"] = "bfloat16"
    shard: Positive | None = None
    recompute: tuple[Literal["vision", "language"], ...] = ()
    compile: bool = False
    timeout: Positive = 600

    def sides(self, ranks: int) -> dict[str, int]:
        """The mesh of so many ranks, by its dimensions' names. Raises `ConfigError` where `shard` divides them not."""
        shard = self.shard or ranks
        if ranks % shard:
            raise ConfigError(f"parallel.shard {shard} does not divide {ranks} ranks: name a divisor, or null for all")
        return {"replicate": ranks // shard, "shard": shard} if shard < ranks else {"shard": shard}


class Checkpoint(Settings):
    """folder: null: `checkpoints` of the output; or a path, or `s3://`. every: steps. resume: `auto` goes on from the
    newest one, `none` refuses to where there are any, else a step.
    """

    folder: str | None = None
    every: Positive = 1000
    keep_last: Positive = 3
    background: bool = True
    resume: Literal["auto", "none"] | Positive = "auto"


class Log(Settings):
    """every: steps between lines. tensorboard: if it is installed. preempt: steps between looks whether to stop."""

    every: Positive = 10
    tensorboard: bool = True
    preempt: Positive = 10


class Eval(Settings):
    """Held-out data sets, each `every` steps: the loss per task over `samples`, and what it says to `speak` of them."""

    manifests: tuple[str, ...] = ()
    every: Positive = 1000
    samples: Positive = 512
    speak: Whole = 4


class TrainConfig(Settings):
    """One run of one stage.

    image_size: pixels. projection_with: whether ln_post and proj train with the tower, as released. steps or epochs:
    where it ends; the schedule spans just that.
    """

    stage: Literal[1, 2, 3]
    trains: Annotated[tuple[Part, ...], Field(min_length=1)]
    image_size: Positive
    projection_with: Literal["vision", "adapter"] = "vision"
    steps: Positive | None = None
    epochs: Positive | None = None
    data: Data = Data()
    batch: BatchSize
    optim: Optim
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    eval: Eval = Eval()

    def dealt(self, ranks: int) -> Dealt:
        """How a step is divided: whole lanes to a forward, or whole forwards to a lane."""
        lanes, micro = -(-self.data.lanes // ranks), self.batch.micro
        each = self.batch.size // self.data.lanes
        part = max(n for n in range(1, each + 1) if each % n == 0 and n <= micro)
        return Dealt(each, part, min(max(1, micro // each), lanes), lanes)

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        data, wanted = self.data, self.batch.size
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("steps or epochs: name one of them (set the other to null)")
        if self.epochs is not None and (data.pack or data.weights):
            raise ValueError("epochs: packed and weighted runs end at `steps`, each lane has its own epochs")
        if wanted % data.lanes:
            raise ValueError(f"batch.size {wanted} is no multiple of data.lanes {data.lanes}")
        if data.weights and len(data.weights) != len(data.manifests):
            raise ValueError(f"data.weights: {len(data.weights)} weights for {len(data.manifests)} manifests")
        if len(set(data.manifests)) != len(data.manifests):
            raise ValueError("data.manifests: one is named twice: give it a weight instead")
        return self


def load_config(
    stage: int, layers: tuple[Path, ...] = (), overrides: tuple[str, ...] = (), **given: dict[str, Any]
) -> TrainConfig:
    """The settings of a stage: `stages.yaml`, then files in their order, then `given`, then `a.b=c`.

    A file is settings, or settings under the number of a stage. Raises `ConfigError` with the key and where it stands.
    """
    values: dict[str, Any] = {"stage": stage}
    for path in (STAGES, *layers):
        read = _read(path)
        if read and all(key in (1, 2, 3) for key in read):
            read = read.get(stage) or {}
        _lay(values, read, str(path))
    _lay(values, given, "the command line")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: an override is written a.b=c, such as optim.lr=1e-4")
        _lay(values, {key: _parsed(value, text)}, text)
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return checked(nested, ", ".join(map(str, (STAGES.name, *layers))))


def add_arguments(parser: argparse.ArgumentParser, stage: bool = True) -> None:
    """What names a run, the same for training, launching and planning. stage: whether it must be named."""
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2, 3), required=stage, help="1 captions, 2 all tasks, 3 chats")
    add("--data", nargs="+", default=[], metavar="MANIFEST", help="data sets: folders or manifest.json")
    add("--config", action="append", default=[], type=Path, metavar="FILE", help="settings laid over stages.yaml")
    add("overrides", nargs="*", metavar="a.b=c", help="single settings, such as optim.lr=1e-4")


def config_of(options: argparse.Namespace) -> TrainConfig:
    """The settings that a command names by `add_arguments`. Raises `ConfigError`."""
    data = [each for each in options.data if "=" not in each]
    # `--data x a.b=c`: argparse cannot know where the data sets end.
    overrides = [*(each for each in options.data if "=" in each), *options.overrides]
    given: dict[str, Any] = {"data": {"manifests": data}} if data else {}
    return load_config(options.stage, tuple(options.config), tuple(overrides), **given)


def checked(values: dict[str, Any], where: str) -> TrainConfig:
    """Raises `ConfigError` with the first key that is wrong. Not strict: YAML takes 1e-4, without a dot, for text."""
    try:
        return TrainConfig.model_validate(values, strict=False)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_mistake(error)}") from error


# What may be another one when a run goes on: ranks, workers, micro-batches, logging, checkpoints.
_FREE = (
    *("data.workers", "data.bad", "batch.micro", "parallel.shard", "parallel.recompute", "parallel.compile"),
    *("parallel.timeout", "checkpoint.", "log.", "eval."),
)


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """What differs between two runs in what the result depends on: `optim.lr 0.0002 there, 0.0001 here`."""
    left, right = (_flat(each.model_dump()) for each in (one, other))
    odd = [key for key in left if left[key] != right[key] and not key.startswith(_FREE)]
    return [f"{key} {left[key]} there, {right[key]} here" for key in odd]


def _flat(values: dict[Any, Any]) -> dict[str, Any]:
    """Settings by their names with dots: `optim.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {str(key): value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
    return found


def _read(path: Path) -> dict[Any, Any]:
    try:
        read = _parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path}: settings are needed, `key: value` lines")
    return read


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: no YAML: {' '.join(str(error).split())}") from error


def _lay(under: dict[str, Any], over: dict[Any, Any], where: str) -> None:
    """Lays settings over others, which go by their names with dots. Raises `ConfigError` for what is none."""
    groups = {name: field.annotation for name, field in TrainConfig.model_fields.items()}
    known = _flat({name: getattr(group, "model_fields", name) for name, group in groups.items()})
    for key, value in _flat(over).items():
        if key in groups and key not in known:
            raise ConfigError(f"{where}: {key} is a group of settings: write {key}.NAME=...")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(groups)}"
            raise ConfigError(f"{where}: {key} is no setting: {hint}")
        under[key] = value
