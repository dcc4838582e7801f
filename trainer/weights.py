"""Tensors in files, one by one: safetensors and torch's .bin, whole or in shards, which an index names.

The one decision: a reader maps files into memory, one at a time, so a tensor costs memory only while somebody holds it;
a writer holds one shard. What files hold is known before anything is written; nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import ModelError

Shape = tuple[int, ...]
SHARD_BYTES = 5_000_000_000  # of a file that is written, at most
NOTHING = re.compile("(?!)")
# What torch, zipfile and pickle raise for a file that is cut, is none of theirs, or asks for more than tensors.
_BROKEN = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Take:
    """A tensor of the result: `make` of the source's tensors `keys`, each of which must have the shape `shape`."""

    keys: tuple[str, ...]
    shape: Shape
    make: Callable[..., Tensor] = lambda tensor: tensor


class Checkpoint:
    """The tensors of some files. `shapes`: of every tensor by its name; `name`: where it lies, for messages."""

    def __init__(self, name: str | Path, *parts: tuple[str, Iterable[Path]]) -> None:
        """parts: what goes before the names, and files. Raises `ModelError` for one that is damaged, or holds
        something else than tensors.
        """
        self.name = name
        self.shapes: dict[str, Shape] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._opened = lru_cache(1)(_opened)  # only the last file stays mapped
        for prefix, files in parts:
            for path in files:
                shapes, _ = self._opened(path)
                self.shapes |= {prefix + key: shape for key, shape in shapes.items()}
                self._places |= {prefix + key: (path, key) for key in shapes}

    def read(self, key: str) -> Tensor:
        """A tensor, mapped: its memory is the file's."""
        path, stored = self._places[key]
        return self._opened(path)[1](stored).detach()

    def check(self, takes: Mapping[str, Take], ignored: re.Pattern[str] = NOTHING) -> None:
        """Raises `ModelError` unless these tensors are there in these shapes, and no others than `ignored` ones."""
        wanted = {key: take.shape for take in takes.values() for key in take.keys}
        if missing := sorted(wanted.keys() - self.shapes.keys()):
            raise ModelError(f"{self.name}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors)")
        if unknown := sorted(key for key in self.shapes.keys() - wanted.keys() if not ignored.search(key)):
            raise ModelError(f"{self.name}: {unknown[0]}: this model has no such tensor ({len(unknown)} in all)")
        for key, shape in wanted.items():
            if (there := self.shapes[key]) != shape:
                shapes = f"its shape is {[*there]}, the configuration asks for {[*shape]}"
                raise ModelError(f"{self.name}: {key}: {shapes}")

    def stream(self, takes: Mapping[str, Take]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the result, one by one."""
        for name, take in takes.items():
            yield name, take.make(*map(self.read, take.keys))


def _opened(path: Path) -> tuple[dict[str, Shape], Callable[[str], Tensor]]:
    """The shapes of a file's tensors, and what gives one by its name."""
    try:
        if path.suffix == ".safetensors":
            file: Any = safe_open(path, framework="pt")
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for key, value in held.items() if isinstance(held, dict) else [("the content", held)]:
            if not isinstance(value, Tensor):
                raise TypeError(f"{key} is a {type(value).__name__}, no tensor")
        return {key: tuple(value.shape) for key, value in held.items()}, held.__getitem__
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path}: is damaged, or more than tensors is in it: nothing of it was run") from error
    except _BROKEN as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: is damaged, or no checkpoint of tensors: {why}") from error


def find_files(folder: Path, *stems: str) -> list[Path]:
    """The files of a folder's checkpoint: STEM.safetensors or .bin, or those that an index names.

    Raises `ModelError` where there is none, or one is missing.
    """
    for kind, stem in product(("safetensors", "bin"), stems):
        index, whole = folder / f"{stem}.{kind}.index.json", folder / f"{stem}.{kind}"
        if not index.is_file() and not whole.is_file():
            continue
        files = _indexed(index) if index.is_file() else [whole]
        for path in files:
            if not path.is_file():
                raise ModelError(f"{path}: is missing: the checkpoint is not complete")
        return files
    raise ModelError(f"{folder}: there is no {' or '.join(f'{stem}.safetensors or {stem}.bin' for stem in stems)}")


def _indexed(index: Path) -> list[Path]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError(f"{index}: weight_map, a file for every tensor, is missing")
    for file in placed.values():
        if not isinstance(file, str) or file != Path(file).name:
            raise ModelError(f"{index}: weight_map: {file!r:.80} is no file of this folder")
    return [index.parent / file for file in sorted(set(placed.values()))]


class Shards:
    """Writes named tensors as one safetensors file, or as several with an index, at most `SHARD_BYTES` each."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem = folder, stem
        self._held: dict[str, Tensor] = {}
        self._total = 0
        self._parts: list[list[str]] = []
        self._dtypes: set[str] = set()

    def add(self, name: str, tensor: Tensor) -> None:
        if self._held and sum(each.nbytes for each in self._held.values()) + tensor.nbytes > SHARD_BYTES:
            self.flush()
        self._held[name] = tensor.detach().cpu().contiguous()
        self._total += tensor.nbytes
        self._dtypes.add(str(tensor.dtype).removeprefix("torch."))

    def flush(self) -> None:
        if self._held:
            save_file(self._held, self._partial(len(self._parts)), metadata={"format": "pt"})
            self._parts.append([*self._held])
            self._held = {}

    def close(self) -> str:
        """Gives the files their names: their number is known now. The dtype of all, `float32` where they differ."""
        self.flush()
        count, placed = len(self._parts), dict[str, str]()
        for number, part in enumerate(self._parts):
            shard = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
            os.replace(self._partial(number), self._folder / (name := f"{self._stem}{shard}.safetensors"))
            placed |= dict.fromkeys(part, name)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(placed.items()))}
            write_json(self._folder / f"{self._stem}.safetensors.index.json", index)
        return self._dtypes.pop() if len(self._dtypes) == 1 else "float32"

    def _partial(self, number: int) -> Path:
        return self._folder / f".{self._stem}-{number}.partial"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON under a temporary name and renames it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


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
