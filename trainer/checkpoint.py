"""Checkpoints to go on from: what trains, its optimizer's state, and how far in its data the run is.

    step-00001000/__0_0.distcp ...  the tensors of each rank, and .metadata, what lies where: as torch's DCP writes them
    step-00001000/state.json        the run: settings, the model folder it began with, the position of each lane
    step-00001000/complete.json     bytes and sha256 of all these, written last: without it there is no checkpoint

The one decision: nothing is read before complete.json vouches for it. That tells a damaged file from a whole one, not a
friend's from a foe's: .metadata is a pickle, and the hash that lets it be opened stands beside it. Go on from your own.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from io import BufferedReader, BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.distributed.checkpoint import api, filesystem, state_dict, state_dict_loader, state_dict_saver
from torch.optim import Optimizer

from shards.errors import explain
from shards.storage import NotFound, Storage, StorageError
from trainer.errors import CheckpointError, ModelError
from trainer.parallel import PATIENCE, Ranks, together

_MARKER, _STATE, _METADATA = "complete.json", "state.json", ".metadata"
_FILES = TypeAdapter(dict[str, tuple[int, str]])  # of the marker: name -> bytes, sha256
_PIECE = 16 << 20  # bytes of a file that is checked, at once: a request each on an object store
_folder = "step-{:08d}".format
Json = dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, in one folder that all ranks share. keep_last: complete ones that stay.

    background: `save` returns when all is copied to the CPU's memory. For an object store, files lie in `TMPDIR` first.
    """

    def __init__(self, storage: Storage, ranks: Ranks, keep_last: int, background: bool) -> None:
        self.storage, self.where, self.keep_last = storage, storage.where(), keep_last
        self._ranks, self._background = ranks, background
        # Of its own: a thread talks on it while training talks on the ranks' other groups.
        self._group = ranks.gloo and dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))
        self._running: Any = None
        if self._group is None:  # DCP would say in each save that it is alone
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, state: Json, position: Json) -> None:
        """Saves what trains. state: the same on all ranks; position: lane -> JSON, of this rank's lanes alone.

        All ranks call it; it replaces what stands at this step. Raises `CheckpointError` on all ranks if this or, in
        the background, the save before failed on any.
        """
        self.wait()
        given: Json = {"process_group": self._group, "no_dist": self._group is None}
        writer = _Writer(self, step, state, {**position})
        with _one_line(self.where):
            self._running = state_dict_saver.async_save(_tensors(model, optimizer), storage_writer=writer, **given)
        if not self._background:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is complete. All ranks call it, and all raise `CheckpointError` if it failed on any."""
        running, self._running = self._running, None
        if running is not None:
            with _one_line(self.where):
                running.result()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending. Raises `CheckpointError` where they cannot be listed."""
        with _one_line(self.where):
            return sorted(int(name[5:]) for name in self.folders() if self.storage.exists(f"{name}/{_MARKER}"))

    def state(self, step: int) -> Json:
        """What `save` was given, with the position of all ranks' lanes. Raises `CheckpointError` if it is not whole."""
        with _one_line(self.where):
            return dict(json.loads(self.storage.read(self._check(step, _STATE, self._files(step)))))

    def load(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Puts a checkpoint into a model and its optimizer, however many ranks there are now; settings of groups stay.

        All ranks call it, each checks its share of the files, and all raise `CheckpointError` if one is damaged or a
        parameter does not fit, before anything is changed.
        """
        self.wait()
        tensors, failed = _tensors(model, optimizer), Counter[str]()
        try:
            with _one_line(self.where):
                files = self._files(step)
                for name in sorted(files)[self._ranks.rank :: self._ranks.world]:
                    self._check(step, name, files)
                metadata = pickle.loads(self.storage.read(self._check(step, _METADATA, files)))
                there: Json = {name: [*each.size] for name, each in metadata.state_dict_metadata.items()}
                here: Json = {name: [*each.shape] for name, each in tensors.items()}
                if odd := [name for name in there.keys() | here if there.get(name) != here.get(name)]:
                    why = f"{there.get(min(odd), 'absent')} there, {here.get(min(odd), 'absent')} here"
                    raise CheckpointError(f"{self.where}/{_folder(step)}: of another model or stage: {min(odd)}: {why}")
        except CheckpointError as error:
            failed[str(error)] += 1
        if failed := together(failed, self._ranks):
            raise CheckpointError(min(failed))
        # torch's reader over our storage: what was checked says what lies where, and a tensor is one request.
        reader: Any = filesystem.FileSystemReader(_folder(step))
        reader.fs = SimpleNamespace(concat_path="{}/{}".format, create_stream=lambda at, _: self.storage.open_input(at))
        reader.read_metadata = lambda: metadata
        reader._slice_file = lambda file, part: BytesIO(file.read_at(part.length, part.offset))
        with _one_line(self.where):
            group: Json = {"process_group": self._ranks.gloo, "no_dist": self._ranks.gloo is None}
            state_dict_loader.load(tensors, storage_reader=reader, **group)

    def folders(self) -> list[str]:
        return [name for name in self.storage.folders() if re.fullmatch(r"step-\d{8,}", name)]

    def remove(self, folders: Iterable[str]) -> None:
        for folder in folders:
            self.storage.delete(f"{folder}/{_MARKER}")
            self.storage.delete_folder(folder)

    def _files(self, step: int) -> dict[str, tuple[int, str]]:
        try:
            return _FILES.validate_json(self.storage.read(f"{_folder(step)}/{_MARKER}"))
        except (NotFound, ValidationError) as error:
            raise CheckpointError(f"{self.where}/{_folder(step)}: no complete checkpoint: remove it") from error

    def _check(self, step: int, name: str, files: dict[str, tuple[int, str]]) -> str:
        """The path of a file. Raises `CheckpointError` unless it is the one that was written."""
        path, digest = f"{_folder(step)}/{name}", ""
        size, wanted = files.get(name, (-1, "none"))
        if (there := self.storage.info(path).size) == size:
            with BufferedReader(self.storage.open_input(path), _PIECE) as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != wanted:
            why = "missing" if there is None else f"{there} of {size} bytes" if there != size else "its sha256 differs"
            raise CheckpointError(f"{self.where}/{path}: damaged: {why}: remove its folder to go on from an older one")
        return path


class _Writer(filesystem.FileSystemWriter):
    """Lets DCP write into a local folder: the checkpoint's own, or one from which an object store gets the files.

    What its methods raise on any rank, DCP raises on all.
    """

    def __init__(self, kept: Checkpoints, step: int, state: Json, position: Json) -> None:
        super().__init__(_folder(step))
        self._kept, self._step, self._state, self._position = kept, step, state, position

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: Any) -> Any:
        """On one rank, before any writes: sweeps what crashed saves left, and what stands at this step."""
        whole = {_folder(step) for step in self._kept.steps() if step != self._step}
        self._kept.remove({*self._kept.folders()} - whole)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """What this rank tells DCP; its files; its lanes' position."""
        with self._room() as room:
            written = super().write_data(plan, planner)
            files = self._settled(room, {each.storage_data.relative_path for each in written.value()})
        return written.then(lambda done: (done.value(), files, self._position))

    def finish(self, metadata: Any, results: list[Any]) -> None:
        """On one rank, with what `write_data` gave on each: the marker, if all files are here; then older ones go."""
        storage, folder = self._kept.storage, _folder(self._step)
        with self._room() as room:
            super().finish(metadata, [written for written, _, _ in results])
            files, position = self._settled(room, [_METADATA]), Json()
        for _, theirs, lanes in results:
            files |= theirs
            position |= lanes
        state = json.dumps({**self._state, "position": position}).encode()
        storage.write(f"{folder}/{_STATE}", state, durable=True)
        files[_STATE] = len(state), hashlib.sha256(state).hexdigest()
        there = {entry.path: entry.size for entry in storage.list(folder)}
        if lost := [path for name, (size, _) in files.items() if there.get(path := f"{folder}/{name}") != size]:
            line = f"{storage.where(min(lost))}: not here, though written: all ranks must share a folder"
            raise CheckpointError(line)
        storage.write(f"{folder}/{_MARKER}", json.dumps(files, indent=1, sort_keys=True).encode(), durable=True)
        before = [_folder(step) for step in self._kept.steps() if step < self._step]
        self._kept.remove(before[: 1 - self._kept.keep_last or None])

    @contextmanager
    def _room(self) -> Iterator[Path]:
        own = self._kept.storage.where(_folder(self._step)) if self._kept.storage.is_local else None
        try:
            with nullcontext(own) if own else tempfile.TemporaryDirectory() as room:
                self.path = Path(room)
                self.path.mkdir(parents=True, exist_ok=True)
                yield self.path
        except (OSError, RuntimeError) as error:
            # torch.save tells of a full disk in the context of its own error, which does not reach other ranks.
            cause = error if isinstance(error, OSError) else error.__context__
            raise explain("write", str(self.path), cause) if isinstance(cause, OSError) else error from cause

    def _settled(self, room: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Bytes and sha256 of files that were written; an object store has them now."""
        for name in () if self._kept.storage.is_local else names:
            with pa.memory_map(str(room / name)) as mapped:
                self._kept.storage.write(f"{_folder(self._step)}/{name}", mapped.read_buffer())
        return {name: _hashed(room / name) for name in names}


def _tensors(model: nn.Module, optimizer: Optimizer) -> Json:
    """What trains and its moments, as this rank holds them: to be saved, or loaded into."""
    state = state_dict.get_model_state_dict(model, options=state_dict.StateDictOptions(ignore_frozen_params=True))
    # Not all of that: it has buffers, and a frozen embedding still as the head that is tied to it.
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments: Any = state_dict.get_optimizer_state_dict(model, optimizer)["state"]  # a fresh optimizer makes them first
    tensors: Json = {f"optim.{name}.{key}": each for name in moments for key, each in moments[name].items()}
    return tensors | {f"model.{name}": state[name] for name in trains}


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """What fails within, on whichever rank, is one `CheckpointError`; Ctrl-C passes."""
    try:
        yield
    except (api.CheckpointException, OSError, RuntimeError, ValueError) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, api.CheckpointException) else error
        if not isinstance(cause, Exception):
            raise cause from None
        known = isinstance(cause, CheckpointError | StorageError)
        raise CheckpointError(f"{'' if known else f'{where}: '}{cause}".split("\n")[0]) from error


def _hashed(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """The sha256 over names, sizes and contents of a model folder's files but hidden ones. Raises `ModelError`."""
    whole = hashlib.sha256()
    try:
        for path in sorted(Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names):
            name = path.relative_to(folder).as_posix()
            if "/." not in f"/{name}":  # hidden: half-written
                whole.update(json.dumps([name, *_hashed(path)]).encode())
    except OSError as error:
        raise ModelError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return whole.hexdigest()
