"""The one door to local disks and object stores: a root folder whose files are read whole, mapped, or written at once.

The one decision behind this module: a file appears whole or not at all. On a local disk it is written under a temporary
name and renamed; on an object store it is one upload that starts when all its bytes are in memory.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from shards.errors import NOT_FOUND, NotFound, StorageError, explain
from shards.globs import compile_stars, expand_braces, has_stars, is_pattern, split_root

__all__ = ["Entry", "NotFound", "Storage", "StorageError", "resolve_inputs"]

Data: TypeAlias = bytes | bytearray | memoryview | pa.Buffer

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp\Z")
# Linux takes at most this many pieces in one call.
_MAX_PIECES = 1024


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A file in a listing."""

    path: str  # relative to the storage's root, with /
    size: int  # bytes
    mtime: float | None  # seconds since 1970, where the store tells


class Storage:
    """Files below a root folder, named by relative paths with `/`. Can be pickled; holds no credentials of its own."""

    def __init__(self, filesystem: fs.FileSystem, root: str, uri: str) -> None:
        """`root` is the folder inside `filesystem`; `uri` is what messages and configurations call it."""
        self._fs = filesystem
        self._root = root.rstrip("/")
        self.uri = uri
        self.is_local = isinstance(filesystem, fs.LocalFileSystem)

    @classmethod
    def open(cls, uri: str) -> Storage:
        """A root from a path (relative ones begin at the current folder), `file://`, `s3://` or `gs://`.

        Credentials, region and endpoint come from the environment as the stores' own tools read them
        (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...); a uri with a password in it is refused. Nothing is created.
        """
        scheme, separator, location = uri.partition("://")
        scheme = scheme.lower()
        if not separator or scheme == "file":
            path = "/" + unquote(location).partition("/")[2] if separator else os.path.expanduser(uri)
            path = os.path.abspath(path)
            return cls(fs.LocalFileSystem(), path, path)
        if scheme not in ("s3", "gs"):
            raise StorageError(f"{uri}: {scheme}:// is not known: use a local path, file://, s3:// or gs://")
        bucket, _, folder = location.rstrip("/").partition("/")
        if "@" in bucket:
            raise StorageError(f"{scheme}:// with credentials in it: put them into the environment instead")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
            raise StorageError(f"{uri}: {bucket!r} is no bucket's name: write {scheme}://bucket/folder")
        # Small files then go up in one request instead of three; and nobody waits a quarter of an hour for credentials.
        options = "allow_delayed_open=true" if scheme == "s3" else "retry_limit_seconds=60"
        try:
            filesystem, _ = fs.FileSystem.from_uri(f"{scheme}://{bucket}?{options}")
        except (OSError, pa.ArrowException) as error:
            raise explain("open", uri, error) from error
        root = f"{bucket}/{folder}".rstrip("/")
        return cls(filesystem, root, f"{scheme}://{root}")

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def where(self, rel: str = "") -> str:
        """The full name of a path, for messages and for other tools."""
        return f"{self.uri.rstrip('/')}/{rel}" if rel else self.uri

    def exists(self, rel: str) -> bool:
        """Whether a file (not a folder) stands there."""
        with self._explaining("look at", rel):
            return bool(self._fs.get_file_info(self._path(rel)).type == fs.FileType.File)

    def size(self, rel: str) -> int:
        """Bytes of a file; `NotFound` if there is none."""
        with self._explaining("look at", rel):
            info = self._fs.get_file_info(self._path(rel))
        if info.type != fs.FileType.File:
            self._missing(rel)
        return int(info.size)

    def read(self, rel: str) -> bytes:
        """The bytes of a file."""
        with self._explaining("read", rel), self._fs.open_input_file(self._path(rel)) as file:
            return bytes(file.read())

    def view(self, rel: str) -> pa.Buffer:
        """A file as a buffer: mapped on a local disk (nothing is read before it is looked at), else read whole.

        The file must not be cut off while it is mapped; files that `write` replaces keep their mapping.
        """
        with self._explaining("read", rel):
            if self.is_local:
                return pa.memory_map(self._path(rel)).read_buffer()
            with self._fs.open_input_file(self._path(rel)) as file:
                return file.read_buffer()

    def view_range(self, rel: str, start: int, stop: int) -> pa.Buffer:
        """Bytes [start, stop) of a file, mapped or read by one request; an error if the file ends before `stop`."""
        if not 0 <= start <= stop:
            raise ValueError(f"no range of bytes: {start} to {stop}")
        if self.is_local:
            buffer = self.view(rel)[start:stop]
        else:
            with self._explaining("read", rel), self._fs.open_input_file(self._path(rel)) as file:
                file.seek(start)
                buffer = file.read_buffer(stop - start)
        if buffer.size < stop - start:
            raise StorageError(f"cannot read {self.where(rel)}: it ends before byte {stop}: has it been replaced?")
        return buffer

    def open_input(self, rel: str) -> pa.NativeFile:
        """A file open for reading at any position, as Parquet's reader wants it; the caller closes it."""
        with self._explaining("read", rel):
            return self._fs.open_input_file(self._path(rel))

    def write(self, rel: str, data: Data | Sequence[Data]) -> None:
        """Writes a file whole, in place of one that stands there; folders above it are made.

        The pieces of a sequence are written one after the other without being joined. If anything fails, what stood
        there before stands there still. The bytes outlive every process; a power cut right after may lose them.
        """
        pieces: Sequence[Data] = [data] if isinstance(data, bytes | bytearray | memoryview | pa.Buffer) else data
        with self._explaining("write", rel):
            if self.is_local:
                _write_local(self._path(rel), [memoryview(piece).cast("B") for piece in pieces])
            else:
                self._upload(self._path(rel), [pa.py_buffer(piece) for piece in pieces])

    def delete(self, rel: str, missing_ok: bool = True) -> None:
        """Deletes a file."""
        try:
            with self._explaining("delete", rel):
                self._fs.delete_file(self._path(rel))
        except NotFound:
            if not missing_ok:
                raise

    def list(self, folder: str = "", suffix: str = "", recursive: bool = False) -> list[Entry]:
        """The files of a folder whose names end with `suffix`, sorted by path; none if there is no such folder.

        Temporary files of `write` are left out.
        """
        with self._explaining("list", folder):
            selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
            infos = self._fs.get_file_info(selector)
        skip = len(self._root) + 1
        return sorted(
            Entry(info.path[skip:], int(info.size), None if info.mtime_ns is None else info.mtime_ns / 1e9)
            for info in infos
            if info.type == fs.FileType.File and info.path.endswith(suffix) and not _TEMPORARY.match(info.base_name)
        )

    def sweep_temporary(self, older_than_s: float = 3600) -> int:
        """Deletes temporary files that dead processes left below the root, and says how many.

        Object stores have none (an upload that was not completed is no object; a lifecycle rule of the bucket ends it).
        """
        if not self.is_local:
            return 0
        oldest = time.time() - older_than_s
        count = 0
        for folder, _, names in os.walk(self._root):
            for name in filter(_TEMPORARY.match, names):
                path = os.path.join(folder, name)
                with suppress(NotFound), self._explaining("delete", os.path.relpath(path, self._root)):
                    if os.stat(path).st_mtime < oldest:
                        os.unlink(path)
                        count += 1
        return count

    def _path(self, rel: str) -> str:
        if rel.startswith("/") or ".." in rel.split("/"):
            raise ValueError(f"{rel!r} is not a path below the root {self.uri}")
        return f"{self._root}/{rel}" if rel else self._root or "/"

    def _missing(self, rel: str) -> NoReturn:
        raise NotFound(f"cannot read {self.where(rel)}: {NOT_FOUND}")

    @contextmanager
    def _explaining(self, action: str, rel: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise explain(action, self.where(rel), error) from error

    def _upload(self, path: str, pieces: Sequence[pa.Buffer]) -> None:
        # Closing a stream publishes what it was given so far, and so does its destructor. In a thread of its own, no
        # signal (Ctrl-C, a cancelled Ray task) can come between the first piece and the close.
        def upload() -> None:
            stream = self._fs.open_output_stream(path, compression=None)
            for piece in pieces:
                stream.write(piece)
            stream.close()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(upload).result()


def resolve_inputs(path: str, suffixes: tuple[str, ...]) -> tuple[Storage, list[Entry]]:
    """The input files a configuration names, sorted by path: a file, a folder, or a pattern of `shards.globs`.

    A folder stands for all files below it that end with one of `suffixes`, except in hidden and `_folders`. Entries are
    relative to the storage's root: the folder, or the part of a pattern before its first special character. Raises
    `StorageError` where nothing is found, or where files that braces name are missing.
    """
    if re.match(r"\w+://[^/]*[{*?\[]", path):
        raise StorageError(f"{path}: a pattern cannot stand for buckets: name one")
    storage = Storage.open(path)
    info = _root_info(storage)
    if info.type == fs.FileType.File:
        parent, _, name = storage.uri.rpartition("/")
        storage, names = Storage(storage._fs, storage._root.rpartition("/")[0], parent or "/"), [name]
        found = [Entry(name, int(info.size), None if info.mtime_ns is None else info.mtime_ns / 1e9)]
    elif info.type == fs.FileType.Directory:
        listing = storage.list(recursive=True)
        found = [entry for entry in listing if not re.search(r"(?:^|/)[._]", entry.path)]
        names = ["**"]
    elif is_pattern(path):
        root, pattern = split_root(path)
        storage = Storage.open(root)
        if _root_info(storage).type != fs.FileType.Directory:
            raise NotFound(f"{path}: there is no folder {storage.uri}: check the path")
        try:
            names = list(expand_braces(pattern))
            found = _match(path, names, storage.list(recursive="/" in pattern or "**" in pattern))
        except ValueError as error:
            raise StorageError(f"{path}: {error}") from None
    else:
        raise NotFound(f"cannot read {path}: {NOT_FOUND}")
    wanted = [entry for entry in found if entry.path.endswith(suffixes)]
    wrong = [name for name in names if not has_stars(name) and not name.endswith(suffixes)]
    if wrong or not wanted:
        other = f"{wrong[0]} is none" if wrong else f"it holds {len(found)} other files" if found else "it is empty"
        raise StorageError(f"{path}: no input with the ending {' or '.join(suffixes)}: {other}")
    return storage, wanted


def _root_info(storage: Storage) -> fs.FileInfo:
    with storage._explaining("look at", ""):
        return storage._fs.get_file_info(storage._path(""))


def _match(path: str, names: list[str], listing: list[Entry]) -> list[Entry]:
    """The files of a listing that the names stand for, once each; `NotFound` if a name stands for none."""
    by_path = {entry.path: entry for entry in listing}
    found: dict[str, Entry] = {}
    missing: list[str] = []
    for name in names:
        if has_stars(name):
            stars = compile_stars(name)
            hits = [entry for entry in listing if stars.match(entry.path)]
        else:
            hits = [by_path[name]] if name in by_path else []
        found.update((entry.path, entry) for entry in hits)
        if not hits:
            missing.append(name)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise NotFound(f"{path}: {len(missing)} of {len(names)} names have no file: {first}: complete the input first")
    return sorted(found.values())


def _write_local(path: str, pieces: list[memoryview]) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_pieces(file, [piece for piece in pieces if len(piece)])
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_pieces(file: int, pieces: list[memoryview]) -> None:
    at = 0
    while at < len(pieces):
        written = os.writev(file, pieces[at : at + _MAX_PIECES])
        while at < len(pieces) and written >= len(pieces[at]):
            written -= len(pieces[at])
            at += 1
        if written:
            pieces[at] = pieces[at][written:]
