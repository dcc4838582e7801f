"""Writes a file of a local disk whole or not at all: under a temporary name, then renamed.

The one decision behind this module: each byte is fetched from memory once. What is hashed is hashed a moment before it
is written, while it is in the processor's cache; and a large file that must be on the disk before it counts goes
there directly (O_DIRECT) where the file system can, since to fill the kernel's cache on the way costs several times
as much CPU and pushes out what others read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa

# Linux takes at most this many pieces in one call.
_MAX_PIECES = 1024
# Bytes hashed and then written at once: well within a core's cache.
_AT_ONCE = 512 << 10
# Durable files of so many bytes are written directly, this much at a time.
_DIRECT_FROM = 4 << 20
_BUFFER = 1 << 20
# Of what positions, lengths and addresses are multiples in direct writes, whatever the disk.
_ALIGNED = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


def write_local(path: str, pieces: list[memoryview], durable: bool = False, hashed: bool = False) -> str:
    """Writes the file in place of one that stands there; folders above it are made. Leaves nothing where it fails.

    Gives the sha256 of the file in hex, if it is to be hashed, else "". durable: the bytes are on the disk before the
    file gets its name. The folder is not flushed: file systems with a journal keep renames in their order, so what is
    renamed later never stands without what was renamed before.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            direct = durable and sum(map(len, pieces)) >= _DIRECT_FROM and _go_direct(file)
            write = _write_direct if direct else _write_pieces
            digest = write(file, [piece for piece in pieces if len(piece)], hashed)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return digest


def sha256_of(pieces: Iterable[bytes | memoryview | pa.Buffer]) -> str:
    """sha256 in hex of pieces one after the other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _write_pieces(file: int, pieces: list[memoryview], hashed: bool) -> str:
    digest = hashlib.sha256()
    at = known = 0  # pieces written, pieces hashed
    while at < len(pieces):
        size = 0
        while hashed and known < len(pieces) and size < _AT_ONCE:
            digest.update(pieces[known])
            size += len(pieces[known])
            known += 1
        written = os.writev(file, pieces[at : min(at + _MAX_PIECES, known if hashed else len(pieces))])
        while at < len(pieces) and written >= len(pieces[at]):
            written -= len(pieces[at])
            at += 1
        if written:
            pieces[at] = pieces[at][written:]
    return digest.hexdigest() if hashed else ""


def _go_direct(file: int, on: bool = True) -> bool:
    """Whether the file is now written directly, or no longer is: some file systems cannot."""
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
    except OSError:
        return False
    return True


def _write_direct(file: int, pieces: list[memoryview], hashed: bool) -> str:
    """As `_write_pieces`, for a file that goes past the kernel's cache: all but what is left of the last block."""
    digest = hashlib.sha256()
    view = memoryview(mmap.mmap(-1, _BUFFER))  # begins at a page
    filled = 0
    for piece in pieces:
        at = 0
        while at < len(piece):
            size = min(len(piece) - at, _BUFFER - filled)
            view[filled : filled + size] = piece[at : at + size]
            at, filled = at + size, filled + size
            if filled == _BUFFER:
                if hashed:
                    digest.update(view)
                _write_blocks(file, view)
                filled = 0
    if hashed:
        digest.update(view[:filled])
    whole = filled - filled % _ALIGNED
    _write_blocks(file, view[:whole])
    _go_direct(file, on=False)
    _write_blocks(file, view[whole:filled])
    return digest.hexdigest() if hashed else ""


def _write_blocks(file: int, view: memoryview) -> None:
    """Writes all of it; through the kernel's cache from where direct writing is refused or ends within a block."""
    at = 0
    while at < len(view):
        try:
            at += os.write(file, view[at:])
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(file, fcntl.F_GETFL) & _O_DIRECT:
                raise
            _go_direct(file, on=False)
        if at % _ALIGNED:
            _go_direct(file, on=False)
