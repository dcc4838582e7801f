"""Writes a file of a local disk whole or not at all: under a temporary name, then renamed.

The one decision behind this module: the pieces go to the kernel as they are, without being joined.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress

# Linux takes at most this many pieces in one call.
_MAX_PIECES = 1024


def write_local(path: str, pieces: list[memoryview], durable: bool = False) -> None:
    """Writes the file in place of one that stands there; folders above it are made. Leaves nothing where it fails.

    durable: the bytes are on the disk before the file gets its name. The folder is not flushed: file systems with a
    journal keep renames in their order, so what is renamed later never stands without what was renamed before.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_pieces(file, [piece for piece in pieces if len(piece)])
            if durable:
                os.fsync(file)
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
