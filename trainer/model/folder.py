"""A complete model folder: what every training run starts from, and what `convert` and a stage's end write.

    config.json           tower, adapter, the placeholder's id
    vision.safetensors    vision.*, adapter.*, projection.*
    language/             transformers' own folder: AutoModelForCausalLM opens it; the tokenizer's files lie here too

The one decision: tensors go through one by one. A writer holds one shard, a reader one tensor, so a model is converted
and loaded without a second copy of it in memory. config.json is written last: with it, a folder is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.errors import ModelError, TokenizerError
from trainer.model.config import ENDS, ModelConfig, checked
from trainer.model.language import check_language
from trainer.model.vlm import VisionLanguageModel, build_model, refill
from trainer.tokenizer import Tokenizer, load_tokenizer
from trainer.weights import Checkpoint, Shards, Take, find_files, read_json, write_json

LANGUAGE = "language"
_PREFIX = f"{LANGUAGE}."
_TABLE = "adapter.pos_embed"  # kept as it is stored: a table, not a weight


def write_model(folder: Path, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]], tokenizer: Tokenizer) -> None:
    """Writes a model folder from tensors in our names, which are taken one by one.

    folder: new or empty. Raises `ModelError` where it is not, or cannot be written; what `tensors` raises passes.
    """
    must_be_new(folder)
    with writing(folder):
        (folder / LANGUAGE).mkdir(parents=True, exist_ok=True)
        vision, language = Shards(folder, "vision"), Shards(folder / LANGUAGE, "model")
        for name, tensor in tensors:
            mine, other = (language, vision) if name.startswith(_PREFIX) else (vision, language)
            other.flush()
            mine.add(name.removeprefix(_PREFIX), tensor)
        vision.close()
        stated = {**config.language, "dtype": language.close()}
        tokenizer.save(folder / LANGUAGE)
        write_json(folder / LANGUAGE / "config.json", stated)
        ends = {key: stated[key] for key in ENDS if stated.get(key) is not None}
        write_json(folder / LANGUAGE / "generation_config.json", ends)
        write_json(folder / "config.json", config.model_dump(exclude={"language"}))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails within because of the disk is a `ModelError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def must_be_new(folder: Path) -> None:
    """Raises `ModelError` where there is something in a folder that is to be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: there is something already: name a new or an empty folder")


def named_tensors(model: VisionLanguageModel) -> dict[str, Tensor]:
    """What a folder holds of a model: its state without the head where that is the embedding."""
    state: dict[str, Tensor] = model.state_dict()
    if model.language.config.tie_word_embeddings:
        state.pop("language.lm_head.weight", None)
    return state


def load_config(folder: Path) -> ModelConfig:
    """The configuration of a complete model folder. Raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder: make one with `python -m trainer.convert assemble`")
    if not (folder / "config.json").exists() or not (folder / LANGUAGE / "config.json").exists():
        lacks = f"config.json or {LANGUAGE}/config.json is missing"
        raise ModelError(f"{folder}: no complete model folder: {lacks}: make one with `python -m trainer.convert`")
    language = read_json(folder / LANGUAGE / "config.json")
    language = {key: value for key, value in language.items() if key not in ("dtype", "transformers_version")}
    values, where = read_json(folder / "config.json"), f"{folder / 'config.json'}"
    if "format" not in values:
        made = "turn it into a model folder with `python -m trainer.convert`"
        raise ModelError(f"{where}: this is the configuration of another kind of model: {made}")
    return checked({**values, "language": language}, where)


def own_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a model folder. Raises `TokenizerError`, also for one of another model."""
    tokenizer = load_tokenizer(folder / LANGUAGE)
    rows, image = int(config.language["vocab_size"]), tokenizer.special["imgpad"]
    if tokenizer.size > rows or image != config.image_token:
        has, wants = f"{tokenizer.size:,} ids and <imgpad> {image:,}", f"{rows:,} rows and {config.image_token:,}"
        raise TokenizerError(f"{folder}: the tokenizer is another model's: {has}, the model has {wants}")
    return tokenizer


def stored(folder: Path) -> Checkpoint:
    """The tensors of a model folder by our names. Raises `ModelError` for a file that is missing or damaged."""
    return Checkpoint(folder, ("", find_files(folder, "vision")), (_PREFIX, find_files(folder / LANGUAGE, "model")))


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model folder, one by one, mapped: its memory is the file's. Raises as `stored` does."""
    found = stored(folder)
    return ((name, found.read(name)) for name in found.shapes)


def fitting_tensors(folder: Path, model: VisionLanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The same, for a model. Raises `ModelError` for one that it lacks, has in another shape, or that is not there."""
    found = stored(folder)
    takes = {name: Take((name,), tensor.shape) for name, tensor in named_tensors(model).items()}
    found.check(takes)
    return found.stream(takes)


def load_model(folder: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> VisionLanguageModel:
    """A model from a complete folder, in evaluation mode; the language model is tried for packing.

    dtype: of all parameters; None: of each as it is stored. Raises `ModelError` for a tensor that is missing, unknown
    or of another shape, and as `check_language` does.
    """
    model = build_model(load_config(folder), "meta")
    loaded = {}
    for name, tensor in fitting_tensors(folder, model):
        # Copies of their own: what was read is the file's memory, and would change, or crash, with the file.
        loaded[name] = tensor.to(device=device, dtype=None if name == _TABLE else dtype, copy=True)
    # The tensors become the parameters: nothing is allocated twice.
    model.load_state_dict(loaded, strict=False, assign=True)
    refill(model, device)
    check_language(model.language)
    return model.eval()
