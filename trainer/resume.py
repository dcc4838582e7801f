"""Where a run begins: at its model folder, or at the last checkpoint that belongs to it.

The one decision: a checkpoint is gone on from only by the run that made it. What the result depends on, the settings,
the model folder, the tokenizer and the data, is written beside the weights and compared; a difference is one line.
"""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint import Checkpoints, Json, folder_hash
from trainer.config import TrainConfig, checked, differences
from trainer.errors import CheckpointError
from trainer.parallel import Ranks, same
from trainer.tokenizer import Tokenizer


def origin_of(config: TrainConfig, init_from: Path, tokenizer: Tokenizer, ranks: Ranks) -> Json:
    """What a checkpoint says of the run that it belongs to."""
    model = {"name": init_from.name, "sha256": same(ranks, lambda: folder_hash(init_from))}
    return {"config": config.model_dump(mode="json"), "model": model, "tokenizer": tokenizer.fingerprint}


def where_to_begin(config: TrainConfig, kept: Checkpoints, origin: Json, ranks: Ranks) -> tuple[int, Json]:
    """The steps that are done, and what the checkpoint of the last one says; 0 and nothing without one.

    Raises `CheckpointError` for a checkpoint of another run.
    """
    resume = config.checkpoint.resume
    steps: list[int] = same(ranks, kept.steps)
    if resume == "none" and steps:
        raise CheckpointError(f"{kept.where}: there are checkpoints: name another --out, or checkpoint.resume=auto")
    if resume not in ("auto", "none", *steps):
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{kept.where}: there is no checkpoint of step {resume}: there are {there}")
    if not steps:
        return 0, {}
    step = steps[-1] if resume == "auto" else int(resume)
    before: Json = same(ranks, lambda: kept.state(step))
    if differing := "; ".join(differences(checked(before["config"], kept.where), config)):
        what_to_do = "name another --out, or the settings of then"
        raise CheckpointError(f"{kept.where}: made by a run with other settings: {differing}: {what_to_do}")
    for what in ("model", "tokenizer"):
        must_be_the_same(what, before, origin, kept)
    return step, before


def must_be_the_same(what: str, before: Json, origin: Json, kept: Checkpoints) -> None:
    """Raises `CheckpointError` for a checkpoint of another run."""
    there, here = before.get(what, origin[what]), origin[what]
    if there != here:
        raise CheckpointError(f"{kept.where}: made with another {what}: {there} there, {here} here: name another --out")
