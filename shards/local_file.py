"""Writes a file of a local disk whole or not at all: under a temporary name, then renamed.

The one decision behind this module: the pieces go to the kernel as they are, without being joined, and what is hashed
is hashed a moment before it is written, while it is in the processor's cache: each byte is fetched from memory once.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa

# Linux takes at most this many pieces in one call.
_MAX_PIECES = 1024
# Bytes hashed and then written at once: well within a core's cache.
_AT_ONCE = 512 << 10


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
            digest = _write_pieces(file, [piece for piece in pieces if len(piece)], hashed)
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
