"""The site of a demo web: what its server answers to every target, kept as a few packs of bytes with an index each.

The decision behind this module: three thousand small files are slow to make and to sweep, so the bodies stand one after
the other in `NNNNN.pack`, and `NNNNN.jsonl` has a line a target. A pack is made by one worker, alone.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

# How an answer is given: at once; in pieces with pauses; chunked; ended by closing, without a length; never ("hold");
# a byte at a time without end; cut off in the middle; torn down by a reset; with a length beyond any picture, or in
# chunks without end.
Manner = Literal["send", "pieces", "chunked", "unsized", "hold", "drip", "cut", "reset", "oversized", "endless"]


class SiteError(ValueError):
    """The folder holds no whole site; one line for the user."""


class Reply(NamedTuple):
    """What the server does when it is asked for `target` (the path and query of a URL, as a client sends them)."""

    target: str
    body: bytes | memoryview = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    manner: Manner = "send"


def write_pack(folder: Path, number: int, replies: Iterable[Reply]) -> None:
    """Writes pack `number` with its index; the same replies give the same bytes."""
    lines = []
    start = 0
    with (folder / f"{number:05d}.pack").open("wb") as pack:
        for reply in replies:
            pack.write(reply.body)
            stop = start + len(reply.body)
            lines.append(json.dumps([reply.target, start, stop, reply.status, reply.headers, reply.manner]) + "\n")
            start = stop
    (folder / f"{number:05d}.jsonl").write_text("".join(lines))


def read_site(folder: Path) -> dict[str, Reply]:
    """Target -> reply, of all packs; bodies are views of the mapped packs. Raises `SiteError`."""
    site: dict[str, Reply] = {}
    indices = sorted(folder.glob("*.jsonl"))
    if not indices:
        raise SiteError(f"{folder} holds no site: build it with `python -m demo web`")
    for index in indices:
        try:
            view = _view(index.with_suffix(".pack"))
            for line in index.read_text().splitlines():
                target, start, stop, status, headers, manner = json.loads(line)
                if stop > len(view):
                    raise ValueError("its pack is too short")
                pairs = tuple((str(name), str(value)) for name, value in headers)
                site[target] = Reply(target, view[start:stop], status, pairs, manner)
        except (OSError, ValueError) as error:
            raise SiteError(
                f"{index} cannot be read ({error}): remove {folder.parent / 'web.json'} and build again"
            ) from error
    return site


def _view(path: Path) -> memoryview:
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # nothing can be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
