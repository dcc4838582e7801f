"""A complete model folder: what every training run starts from, and what `convert` and a stage's end write.

    config.json           tower, adapter, the placeholder's id
    vision.safetensors    vision.*, adapter.*, projection.*
    language/             transformers' own folder: AutoModelForCausalLM opens it; the tokenizer's files lie here too

The one decision: tensors go through one by one. A writer holds one shard, a reader one tensor, so a model is converted
and loaded without a second copy of it in memory. config.json is written last: with it, a folder is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import ModelError, TokenizerError
from trainer.model.config import ModelConfig, checked
from trainer.model.language import check_language
from trainer.model.vlm import VisionLanguageModel, build_model, refill
from trainer.tokenizer import Tokenizer, load_tokenizer

LANGUAGE = "language"
SHARD_BYTES = 5_000_000_000
_PREFIX = f"{LANGUAGE}."
_TABLE = "adapter.pos_embed"  # kept as it is stored: a table, not a weight


class Shards:
    """Writes named tensors as one safetensors file, or as several with an index, at most `limit` bytes each."""

    def __init__(self, folder: Path, stem: str, limit: int) -> None:
        self._folder, self._stem, self._limit = folder, stem, limit
        self._held: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._parts: list[list[str]] = []
        self._dtypes: set[str] = set()

    @property
    def dtype(self) -> str:
        """Of all tensors so far, as configurations spell it; `float32` where they differ."""
        return next(iter(self._dtypes)) if len(self._dtypes) == 1 else "float32"

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + size > self._limit:
            self.flush()
        self._held[name] = tensor.detach().cpu().contiguous()
        self._bytes += size
        self._total += size
        self._dtypes.add(str(tensor.dtype).removeprefix("torch."))

    def flush(self) -> None:
        if self._held:
            self._parts.append(sorted(self._held))
            save_file(self._held, self._part(len(self._parts)), metadata={"format": "pt"})
            self._held, self._bytes = {}, 0

    def close(self) -> None:
        """Gives the files their names: their number is known now."""
        self.flush()
        count = len(self._parts)
        names = [f"{self._stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        if count == 1:
            names = [f"{self._stem}.safetensors"]
        for number, name in enumerate(names, 1):
            os.replace(self._part(number), self._folder / name)
        if count > 1:
            placed = {tensor: name for name, part in zip(names, self._parts, strict=True) for tensor in part}
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(placed.items()))}
            write_json(self._folder / f"{self._stem}.safetensors.index.json", index)

    def _part(self, number: int) -> Path:
        return self._folder / f".{self._stem}-{number}.partial"


def write_model(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model folder from tensors in our names, which are taken one by one.

    folder: new or empty. Raises `ModelError` where it is not, or cannot be written; what `tensors` raises passes.
    """
    must_be_new(folder)
    with writing(folder):
        (folder / LANGUAGE).mkdir(parents=True, exist_ok=True)
        vision, language = Shards(folder, "vision", shard_bytes), Shards(folder / LANGUAGE, "model", shard_bytes)
        for name, tensor in tensors:
            if name.startswith(_PREFIX):
                vision.flush()
                language.add(name.removeprefix(_PREFIX), tensor)
            else:
                language.flush()
                vision.add(name, tensor)
        vision.close()
        language.close()
        tokenizer.save(folder / LANGUAGE)
        stated = {**config.language, "dtype": language.dtype}
        write_json(folder / LANGUAGE / "config.json", stated)
        ends = {f"{kind}_token_id": stated.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        write_json(folder / LANGUAGE / "generation_config.json", {k: v for k, v in ends.items() if v is not None})
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


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON under a temporary name and renames it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def save_model(model: VisionLanguageModel, tokenizer: Tokenizer, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a model folder. Raises as `write_model` does."""
    write_model(folder, model.config, named_tensors(model).items(), tokenizer, shard_bytes)


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
        raise ModelError(
            f"{folder}: no complete model folder: config.json or {LANGUAGE}/config.json is missing: "
            "make one with `python -m trainer.convert`"
        )
    language = read_json(folder / LANGUAGE / "config.json")
    language = {key: value for key, value in language.items() if key not in ("dtype", "transformers_version")}
    values = read_json(folder / "config.json")
    if "format" not in values:
        raise ModelError(
            f"{folder / 'config.json'}: this is the configuration of another kind of model: turn it into a model "
            "folder with `python -m trainer.convert`"
        )
    return checked({**values, "language": language}, str(folder / "config.json"))


def own_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a model folder. Raises `TokenizerError`, also for one of another model."""
    tokenizer = load_tokenizer(folder / LANGUAGE)
    rows, image = int(config.language["vocab_size"]), tokenizer.special["imgpad"]
    if tokenizer.size > rows or image != config.image_token:
        raise TokenizerError(
            f"{folder}: the tokenizer is another model's: {tokenizer.size:,} ids and <imgpad> {image:,}, "
            f"the model has {rows:,} rows and {config.image_token:,}"
        )
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ModelError` where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: a JSON object is needed")
    return values


def read_index(where: Path) -> dict[str, str]:
    """An index's weight_map. Raises `ModelError` unless it names a file of its own folder for every tensor."""
    placed = read_json(where).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError(f"{where}: weight_map, a file for every tensor, is missing")
    for file in placed.values():
        if not isinstance(file, str) or file != Path(file).name:
            raise ModelError(f"{where}: weight_map: {file!r:.80} is no file of this folder")
    return placed


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model folder by our name, one by one. Raises `ModelError` for a file that is missing or cut."""
    for name, tensor in _read(folder, "vision"):
        yield name, tensor
    for name, tensor in _read(folder / LANGUAGE, "model"):
        yield f"{_PREFIX}{name}", tensor


def _read(folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    index = folder / f"{stem}.safetensors.index.json"
    for file in sorted(set(read_index(index).values())) if index.exists() else [f"{stem}.safetensors"]:
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path}: is missing: the model is not complete")
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # no mapping: it only has keys()
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: is damaged: {error}") from error


def fitting_tensors(folder: Path, model: VisionLanguageModel) -> Iterator[tuple[str, Tensor]]:
    """`read_tensors`. Raises `ModelError` for one that the model lacks, has in another shape, or that is not there."""
    wanted = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    found = set()
    for name, tensor in read_tensors(folder):
        if name not in wanted:
            raise ModelError(f"{folder}: {name}: this model has no such tensor")
        if wanted[name] != tensor.shape:
            raise ModelError(
                f"{folder}: {name}: its shape is {list(tensor.shape)}, the configuration asks for {list(wanted[name])}"
            )
        found.add(name)
        yield name, tensor
    missing = sorted(wanted.keys() - found)
    if missing:
        raise ModelError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors)")


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", check: bool = True
) -> VisionLanguageModel:
    """A model from a complete folder, in evaluation mode.

    dtype: of all parameters; None: of each as it is stored. check: whether the language model is tried for packing
    (`check_language`). Raises `ModelError` for a tensor that is missing, unknown or of another shape.
    """
    model = build_model(load_config(folder), "meta")
    # Copies of their own: what was read is the file's memory, and would change, or crash, with the file.
    loaded = {
        name: tensor.to(device=device, dtype=None if name == _TABLE else dtype, copy=True)
        for name, tensor in fitting_tensors(folder, model)
    }
    # The tensors become the parameters: nothing is allocated twice.
    model.load_state_dict(loaded, strict=False, assign=True)
    refill(model, device)
    if check:
        check_language(model.language)
    return model.eval()
