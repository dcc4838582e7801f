"""Which shard of raw tars holds which rows of which URL list: `download.json` beside the tars.

The one decision: a shard, once numbered, means the same rows for ever. New list files are numbered after all others, so
that lists may grow between two downloads without a second fetch of anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from curation.fetch.adapters import ADAPTERS
from curation.fetch.lists import Piece, cut_list
from curation.plan import RunError
from curation.profile import Download
from shards.storage import Entry, Storage

NAME = "download.json"
# A fetched shard's numbers beside its tar; where the second try of a shard waits until it is whole.
STATS = "_stats.json"
RETRY_FOLDER = "_retry/"
VERSION = 1


class DownloadError(RunError):
    """The download cannot start, or did not end whole: one line."""


@dataclass(frozen=True)
class Shard:
    """Rows of a URL list that become `<name>.tar`; its samples' keys begin with the name."""

    number: int
    piece: Piece

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass
class Catalogue:
    """The list files in the order in which they were first seen, each with its size and its pieces."""

    source: str
    samples_per_shard: int
    resize: Any = None
    root: str = ""
    files: dict[str, tuple[int, list[Piece]]] = field(default_factory=dict)

    def shards(self) -> Iterator[Shard]:
        number = 0
        for _, pieces in self.files.values():
            for piece in pieces:
                yield Shard(number, piece)
                number += 1

    def to_json(self) -> bytes:
        files = [
            {"path": path, "bytes": size, "pieces": [[piece.start, piece.stop, piece.rows] for piece in pieces]}
            for path, (size, pieces) in self.files.items()
        ]
        record = {"version": VERSION, "root": self.root, "source": self.source, "resize": self.resize}
        record["samples_per_shard"] = self.samples_per_shard
        return json.dumps({**record, "files": files}, ensure_ascii=False).encode()


def read_catalogue(output: Storage) -> Catalogue | None:
    """The catalogue of a folder of raw tars; None where there is none. Raises `DownloadError` where it is damaged."""
    if not output.exists(NAME):
        return None
    try:
        record: Any = json.loads(output.read(NAME))
        catalogue = Catalogue(
            str(record["source"]), int(record["samples_per_shard"]), record["resize"], str(record["root"])
        )
        for entry in record["files"]:
            pieces = [Piece(entry["path"], *(int(value) for value in piece)) for piece in entry["pieces"]]
            catalogue.files[entry["path"]] = (int(entry["bytes"]), pieces)
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{output.where(NAME)}: damaged, and with it which shard holds which rows: restore it, or set another "
            "input.path"
        ) from error
    return catalogue


def _resize(download: Download) -> Any:
    return None if download.resize is None else download.resize.model_dump(mode="json")


def update_catalogue(
    output: Storage,
    lists: Storage,
    entries: Sequence[Entry],
    download: Download,
    say: Callable[[str], None],
) -> tuple[Catalogue, set[str]]:
    """The catalogue with every file of `entries`, and the paths among its files that are no longer in the input.

    New files are cut and numbered after the others; nothing is written. Raises `DownloadError` where the settings or
    a file differ from what the catalogue was made of, `curation.raw.SourceError` for a list that cannot be read.
    """
    catalogue = read_catalogue(output)
    if catalogue is None:
        if output.list("", ".tar"):
            raise DownloadError(
                f"{output.uri}: holds tars but no {NAME}, so it was filled by something else: set another input.path"
            )
        catalogue = Catalogue(download.source, download.samples_per_shard, _resize(download), lists.uri)
    for what, before, now in (
        ("download.source", catalogue.source, download.source),
        ("download.samples_per_shard", catalogue.samples_per_shard, download.samples_per_shard),
        ("download.resize", catalogue.resize, _resize(download)),
        ("lists below", catalogue.root, lists.uri),  # one file by two names would be fetched twice
    ):
        if before != now:
            raise DownloadError(
                f"{output.uri}: was begun with {what} {before}, now it is {now}: "
                "change it back, or set another input.path"
            )
    adapter = ADAPTERS[download.source]
    for entry in entries:
        known = catalogue.files.get(entry.path)
        if known is None:
            say(f"counting the rows of {entry.path} ...")
            catalogue.files[entry.path] = (entry.size, cut_list(lists, entry, adapter, download.samples_per_shard))
        elif known[0] != entry.size:
            raise DownloadError(
                f"{lists.where(entry.path)}: changed ({known[0]:,} -> {entry.size:,} bytes) after its download began: "
                "bring the old file back, or give the new one another name"
            )
    return catalogue, catalogue.files.keys() - {entry.path for entry in entries}


def unfinished(output: Storage) -> list[str]:
    """A notice where a folder's download has not fetched all that it has begun; none where it has, or was none.

    Raises `DownloadError` where a retry was interrupted, so that a tar and its Parquet may not fit together.
    """
    catalogue = read_catalogue(output)
    if catalogue is None:
        return []
    if output.list(RETRY_FOLDER.rstrip("/"), STATS):
        raise DownloadError(f"{output.uri}: a retry of its download was interrupted: call the download again first")
    shards = sum(len(pieces) for _, pieces in catalogue.files.values())
    fetched = len(output.list("", STATS))
    if fetched >= shards:
        return []
    return [f"{output.uri}: {shards - fetched:,} of {shards:,} shards are not downloaded yet"]
