"""Checkpoints of other houses, tensor by tensor: safetensors and torch's .bin, whole or sharded, with or without index.

The one decision: files are mapped into memory and one is open at a time, so a tensor costs memory only while somebody
holds it. What a file holds is known before anything is written; nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import ModelError
from trainer.model.folder import read_index

Shape = tuple[int, ...]
# What torch, zipfile and pickle raise for a file that is cut, is none of theirs, or asks for more than tensors.
_BROKEN = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError)


@dataclass(frozen=True)
class Take:
    """A tensor of the result: `make` of the source's tensors `keys`, each of which must have the shape `shape`."""

    keys: tuple[str, ...]
    shape: Shape
    make: Callable[..., Tensor] = lambda tensor: tensor


class Checkpoint:
    """The tensors of some files. `shapes`: of every tensor by its name; `name`: where it lies, for messages."""

    def __init__(self, name: str | Path, *parts: tuple[str, Mapping[Path, Collection[str]]]) -> None:
        """parts: what goes before the names, and files with the tensors that each must hold (see `find_files`).

        Raises `ModelError` for a file that is damaged, or holds something else than tensors.
        """
        self.name = name
        self.shapes: dict[str, Shape] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._open: tuple[Path, dict[str, Shape], Callable[[str], Tensor]] | None = None
        for prefix, files in parts:
            for path, promised in files.items():
                shapes = self._file(path)[1]
                lost = sorted(set(promised) - shapes.keys())
                if lost:
                    raise ModelError(f"{path}: {lost[0]} is not in it, as the index says ({len(lost)} tensors in all)")
                self.shapes |= {prefix + key: shape for key, shape in shapes.items()}
                self._places |= {prefix + key: (path, key) for key in shapes}

    def _file(self, path: Path) -> tuple[Path, dict[str, Shape], Callable[[str], Tensor]]:
        if self._open is None or self._open[0] != path:
            self._open = None  # one mapping at a time
            try:
                self._open = (path, *_map(path))
            except pickle.UnpicklingError as error:
                raise ModelError(f"{path}: damaged, or more than tensors is in it: nothing of it was run") from error
            except (*_BROKEN, SafetensorError) as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(f"{path}: damaged, or no checkpoint of tensors: {why}") from error
        return self._open

    def read(self, key: str) -> Tensor:
        """A tensor, mapped: its memory is the file's."""
        path, stored = self._places[key]
        return self._file(path)[2](stored).detach()

    def check(self, takes: Mapping[str, Take], ignored: re.Pattern[str]) -> None:
        """Raises `ModelError` unless these tensors are there in these shapes, and no others than `ignored` ones."""
        wanted = {key: take.shape for take in takes.values() for key in take.keys}
        missing = sorted(wanted.keys() - self.shapes.keys())
        if missing:
            raise ModelError(f"{self.name}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors)")
        unknown = sorted(key for key in self.shapes.keys() - wanted.keys() if not ignored.search(key))
        if unknown:
            raise ModelError(f"{self.name}: {unknown[0]}: no such tensor is known here ({len(unknown)} in all)")
        for key, shape in wanted.items():
            if self.shapes[key] != shape:
                raise ModelError(
                    f"{self.name}: {key}: its shape is {list(self.shapes[key])}, "
                    f"the configuration asks for {list(shape)}"
                )

    def stream(self, takes: Mapping[str, Take]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the result, one by one."""
        for name, take in takes.items():
            yield name, take.make(*map(self.read, take.keys))


def find_files(folder: Path, *stems: str) -> dict[Path, set[str]]:
    """The files of a folder's checkpoint, STEM.safetensors or .bin or their shards, with what an index says of each.

    Raises `ModelError` where there is none, or a file is missing that the index or the shards' numbers tell of.
    """
    for kind, stem in itertools.product(("safetensors", "bin"), stems):
        index = folder / f"{stem}.{kind}.index.json"
        shards = sorted(folder.glob(f"{stem}-?????-of-{'[0-9]' * 5}.{kind}"))
        files: dict[Path, set[str]] = {}
        if index.is_file():
            for key, file in read_index(index).items():
                files.setdefault(folder / file, set()).add(key)
        elif (folder / f"{stem}.{kind}").is_file():
            files = {folder / f"{stem}.{kind}": set()}
        elif shards:
            count = int(shards[0].stem[-5:])
            files = {folder / f"{stem}-{n:05d}-of-{count:05d}.{kind}": set() for n in range(1, count + 1)}
        for path in files:
            if not path.is_file():
                raise ModelError(f"{path}: is missing: the checkpoint is not complete")
        if files:
            return files
    raise ModelError(f"{folder}: there is no {' or '.join(f'{stem}.safetensors or {stem}.bin' for stem in stems)}")


def _map(path: Path) -> tuple[dict[str, Shape], Callable[[str], Tensor]]:
    if path.suffix == ".safetensors":
        file: Any = safe_open(path, framework="pt")
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118
    held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    for key, value in held.items() if isinstance(held, dict) else [("the content", held)]:
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is a {type(value).__name__}, no tensor")
    return {key: tuple(value.shape) for key, value in held.items()}, held.__getitem__
