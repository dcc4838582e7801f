"""The one door to local disks and object stores: a root folder whose files are read whole, mapped, or written at once.

The one decision behind this module: a file appears whole or not at all. On a local disk it is written under a temporary
name and renamed; on an object store it is one upload that starts when all its bytes are in memory.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from shards.errors import NO_BUCKET, NOT_FOUND, CutOff, NotFound, StorageError, Unavailable, explain
from shards.local_file import sha256_of, write_local
from shards.object_store import ONE_PUT_BYTES, Opened, Patience, RangedFile, open_store, root_of, shown

__all__ = ["CutOff", "Entry", "NotFound", "Storage", "StorageError", "Unavailable"]

T = TypeVar("T")
Data: TypeAlias = bytes | bytearray | memoryview | pa.Buffer

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp\Z")


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A file in a listing."""

    path: str  # relative to the storage's root, with /
    size: int  # bytes
    mtime: float | None  # seconds since 1970, where the store tells


class Storage:
    """Files below a root folder, named by relative paths with `/`. Can be pickled; holds no credentials of its own."""

    def __init__(self, filesystem: fs.FileSystem | None, root: str, uri: str, quick: bool = False) -> None:
        """`root` is the folder inside `filesystem`; `uri` is what messages and configurations call it.

        filesystem: None for an object store, which is opened by its uri when it is first asked for something.
        quick: see `impatient`.
        """
        self._quick = quick
        self._given = filesystem
        self._opened: Opened | None = None
        self._root = root.rstrip("/")
        self.uri = uri
        self.is_local = isinstance(filesystem, fs.LocalFileSystem)
        self._patience = Patience(0.0 if quick else None)
        self._bucket_stands = False

    @classmethod
    def open(cls, uri: str) -> Storage:
        """A root from a path (relative ones begin at the current folder), `file://`, `s3://` or `gs://`.

        Credentials, region and endpoint come from the environment as the stores' own tools read them
        (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...); a uri with credentials or options in it is refused. Nothing is made.
        """
        scheme, separator, location = uri.partition("://")
        scheme = scheme.lower()
        if not separator or scheme == "file":
            path = "/" + unquote(location).partition("/")[2] if separator else os.path.expanduser(uri)
            path = os.path.abspath(path)
            return cls(fs.LocalFileSystem(), path, path)
        if scheme not in ("s3", "gs"):
            raise StorageError(f"{shown(uri)}: {scheme}:// is not known: use a local path, file://, s3:// or gs://")
        root = root_of(uri)
        return cls(None, root, f"{scheme}://{root}")

    def __reduce__(self) -> tuple[Any, ...]:
        # An object store is opened again where it arrives, with the credentials that are there.
        return Storage, (self._given, self._root, self.uri, self._quick)

    def impatient(self) -> Storage:
        """The same root for those who ask again by themselves: a store is asked once, and given seconds to answer."""
        return Storage(self._given, self._root, self.uri, quick=True)

    @property
    def _fs(self) -> fs.FileSystem:
        return self._store().plain if self._given is None else self._given

    def _store(self) -> Opened:
        if self._opened is None:
            self._opened = open_store(self.uri, self._quick)
        return self._opened

    def must_answer(self) -> None:
        """Raises `StorageError` where the root cannot be asked for: a store out of reach, credentials, no such bucket.

        For the begin of a run: a store that does not answer at all is told within seconds; one that answers that it is
        busy is waited for. A folder need not be there.
        """
        if self.is_local:
            return

        def look() -> fs.FileInfo:
            return self._fs.get_file_info(self._root)

        try:
            info = self._do("reach", "", look, patience_s=0.0)
        except Unavailable as error:
            if not error.answered:
                raise
            info = self._do("reach", "", look)
        if info.type == fs.FileType.NotFound:
            self._must_have_bucket()

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def where(self, rel: str = "") -> str:
        """The full name of a path, for messages and for other tools."""
        return f"{self.uri.rstrip('/')}/{rel}" if rel else self.uri

    def info(self, rel: str = "") -> fs.FileInfo:
        """What Arrow says of a path: a file, a folder, or nothing there."""
        return self._do("look at", rel, lambda: self._fs.get_file_info(self._path(rel)))

    def parent(self) -> Storage:
        """The folder above the root."""
        return Storage(self._given, self._root.rpartition("/")[0], self.uri.rpartition("/")[0] or "/", self._quick)

    def exists(self, rel: str) -> bool:
        """Whether a file (not a folder) stands there."""
        return bool(self.info(rel).type == fs.FileType.File)

    def size(self, rel: str) -> int:
        """Bytes of a file; `NotFound` if there is none."""
        info = self.info(rel)
        if info.type != fs.FileType.File:
            self._missing(rel)
        return int(info.size)

    def read(self, rel: str) -> bytes:
        """The bytes of a file."""

        def read() -> bytes:
            with self._fs.open_input_file(self._path(rel)) as file:
                return bytes(file.read())

        return self._do("read", rel, read)

    def view(self, rel: str) -> pa.Buffer:
        """A file as a buffer: mapped on a local disk (nothing is read before it is looked at), else read whole.

        The file must not be cut off while it is mapped; files that `write` replaces keep their mapping.
        """

        def view() -> pa.Buffer:
            if self.is_local:
                return pa.memory_map(self._path(rel)).read_buffer()
            with self._fs.open_input_file(self._path(rel)) as file:
                return file.read_buffer()

        return self._do("read", rel, view)

    def mapped(self, rel: str) -> mmap.mmap:
        """A file of a local disk mapped for reading; `StorageError` if it is empty."""

        def mapped() -> mmap.mmap:
            with open(self._path(rel), "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    raise OSError("the file is empty")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        return self._do("read", rel, mapped)

    def view_range(self, rel: str, start: int, stop: int) -> pa.Buffer:
        """Bytes [start, stop) of a file, mapped or read by one request; an error if the file ends before `stop`."""
        if not 0 <= start <= stop:
            raise ValueError(f"no range of bytes: {start} to {stop}")
        if not self.is_local:
            return self.ranges(rel)(start, stop)
        buffer = self.view(rel)[start:stop]
        if buffer.size < stop - start:
            self._ends_before(rel, stop)
        return buffer

    def ranges(self, rel: str) -> Callable[[int, int], pa.Buffer]:
        """A function that reads bytes [start, stop) of a file, never mapped nor copied.

        `CutOff` if the file ends before `stop`.
        """
        native = self._do("read", rel, lambda: self._fs.open_input_file(self._path(rel)))
        size = native.size()

        def read(start: int, stop: int) -> pa.Buffer:
            return pa.py_buffer(native.read_at(stop - start, start))

        def read_range(start: int, stop: int) -> pa.Buffer:
            if stop > size:
                self._ends_before(rel, stop)
            buffer = self._do("read", rel, lambda: read(start, stop))
            if buffer.size < stop - start:
                self._ends_before(rel, stop)
            return buffer

        return read_range

    def open_input(self, rel: str) -> pa.NativeFile:
        """A file open for reading at any position, as Parquet's reader wants it; the caller closes it.

        On an object store each read is a ranged request with this storage's patience, and fails with `StorageError`.
        """
        native = self._do("read", rel, lambda: self._fs.open_input_file(self._path(rel)))
        if self.is_local:
            return native
        return pa.PythonFile(RangedFile(native.size(), self._reader(rel, native)), mode="r")

    def reader(self, rel: str) -> Callable[[int, int], bytes]:
        """A function that gives bytes [start, stop) of a file, for many small parts of it; may be called by threads."""
        return self._reader(rel, self._do("read", rel, lambda: self._fs.open_input_file(self._path(rel))))

    def _reader(self, rel: str, native: pa.NativeFile) -> Callable[[int, int], bytes]:
        def read_at(start: int, stop: int) -> bytes:
            data: bytes = self._do("read", rel, lambda: native.read_at(stop - start, start))
            if len(data) < stop - start:
                self._ends_before(rel, stop)
            return data

        return read_at

    def write(self, rel: str, data: Data | Sequence[Data], durable: bool = False) -> None:
        """Writes a file whole, in place of one that stands there; folders above it are made.

        The pieces of a sequence are written one after the other without being joined. If anything fails, what stood
        there before stands there still. The bytes outlive every process; those of a local file that is not `durable`
        may be lost by a power cut soon after. What another file will vouch for is written durably, and so is that file.
        """
        self._write(rel, data, durable, hashed=False)

    def write_hashed(self, rel: str, data: Data | Sequence[Data], durable: bool = False) -> str:
        """As `write`; gives the file's sha256 in hex, which is cheaper here: its bytes pass by only once."""
        return self._write(rel, data, durable, hashed=True)

    def _write(self, rel: str, data: Data | Sequence[Data], durable: bool, hashed: bool) -> str:
        pieces: Sequence[Data] = [data] if isinstance(data, bytes | bytearray | memoryview | pa.Buffer) else data
        if self.is_local:
            views = [memoryview(piece).cast("B") for piece in pieces]
            return self._do("write", rel, lambda: write_local(self._path(rel), views, durable, hashed))
        buffers = [pa.py_buffer(piece) for piece in pieces]
        self._do("write", rel, lambda: self._upload(self._path(rel), buffers))
        return sha256_of(buffers) if hashed else ""

    def delete(self, rel: str, missing_ok: bool = True) -> None:
        """Deletes a file."""
        try:
            self._do("delete", rel, lambda: self._fs.delete_file(self._path(rel)))
        except NotFound:
            if not missing_ok:
                raise

    def delete_folder(self, rel: str) -> None:
        """Deletes a folder below the root with all that is in it, if it is there."""
        path = self._path(rel)
        if not rel:
            raise ValueError("the root itself is not deleted")
        with suppress(NotFound):
            self._do("delete", rel, lambda: self._fs.delete_dir(path))

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none if there is no such folder."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        infos = self._do("list", folder, lambda: self._fs.get_file_info(selector))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def list(self, folder: str = "", suffix: str = "", recursive: bool = False) -> list[Entry]:
        """The files of a folder whose names end with `suffix`, sorted by path; none if there is no such folder.

        Temporary files of `write` are left out. A bucket that is not there is an error.
        """
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
        infos = self._do("list", folder, lambda: self._fs.get_file_info(selector))
        if not infos:
            self._must_have_bucket()
        skip = len(self._root) + 1
        try:
            return sorted(
                Entry(info.path[skip:], int(info.size), None if info.mtime_ns is None else info.mtime_ns / 1e9)
                for info in infos
                if info.type == fs.FileType.File and info.path.endswith(suffix) and not _TEMPORARY.match(info.base_name)
            )
        except UnicodeDecodeError as error:  # a disk's names are bytes, Arrow's are text
            name = error.object[len(os.fsencode(self._root)) + 1 :].decode("utf-8", "backslashreplace")
            raise StorageError(f"cannot list {self.where(folder)}: a name is not UTF-8: rename {name}") from error

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

                def sweep(path: str = path) -> bool:
                    old = os.stat(path).st_mtime < oldest
                    if old:
                        os.unlink(path)
                    return old

                with suppress(NotFound):
                    count += self._do("delete", os.path.relpath(path, self._root), sweep)
        return count

    def _path(self, rel: str) -> str:
        if rel.startswith("/") or ".." in rel.split("/"):
            raise ValueError(f"{rel!r} is not a path below the root {self.uri}")
        return f"{self._root}/{rel}" if rel else self._root or "/"

    def _missing(self, rel: str) -> NoReturn:
        raise NotFound(f"cannot read {self.where(rel)}: {NOT_FOUND}")

    def _ends_before(self, rel: str, stop: int) -> NoReturn:
        raise CutOff(f"cannot read {self.where(rel)}: it ends before byte {stop}: has it been replaced?")

    def _must_have_bucket(self) -> None:
        """Listings of a bucket that is not there are empty, as those of a folder that is not there."""
        if self._bucket_stands or self._given is not None:
            return
        bucket = self._root.partition("/")[0]
        try:
            info = self._do("reach", "", lambda: self._fs.get_file_info(bucket))
        except Unavailable:
            raise
        except StorageError:
            return  # those who may list a folder need not be allowed to look at the bucket
        if info.type == fs.FileType.NotFound:
            raise NotFound(f"cannot reach {self.uri}: {NO_BUCKET}")
        self._bucket_stands = True

    def _do(self, action: str, rel: str, work: Callable[[], T], patience_s: float | None = None) -> T:
        """The result of `work`; its errors in one line, and on an object store repeated while they may pass."""

        def once() -> T:
            try:
                return work()
            except (OSError, pa.ArrowException) as error:
                raise explain(action, self.where(rel), error) from error

        return once() if self.is_local else self._patience.ask(once, patience_s)

    def _upload(self, path: str, pieces: Sequence[pa.Buffer]) -> None:
        # Closing a stream publishes what it was given so far, and so does its destructor. In a thread of its own, no
        # signal (Ctrl-C, a cancelled Ray task) can come between the first piece and the close.
        large = sum(piece.size for piece in pieces) >= ONE_PUT_BYTES

        def upload() -> None:
            parts = self._store().parts if large and self._given is None else self._fs
            stream = parts.open_output_stream(path, compression=None)
            for piece in pieces:
                stream.write(piece)
            stream.close()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(upload).result()
