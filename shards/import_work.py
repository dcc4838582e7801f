"""Reads chats or captioned images, and writes them as shards: images as they are, byte for byte.

The one decision behind this module: threads read images, one thread reads records and writes shards in their order. So
the same input gives the same bytes, and memory is that of a shard and some records, whatever the size of the input. An
import that was killed begins again: where a shard ends is known only after its images were read.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from pyarrow import fs

from shards.errors import NOT_FOUND
from shards.import_samples import Refused, format_of, make_sample, read_chat
from shards.index import SUFFIX, write_shard
from shards.manifest import DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.schema import SchemaError, dump_sample
from shards.storage import NotFound, Storage, StorageError, Unavailable
from shards.tar import BLOCK, END

REFUSED = "refused.jsonl"
_MARK = "_importing"  # stands from the begin of an import to its manifest
_IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_PIECE = 1 << 20
_MOST = 1 << 24  # characters of a record: damage may look like one that has no end
_BATCH = 64
_TRIAL = 1000  # an import of which none of so many records is good ends: its --images may be wrong
_separator = re.compile(r"[\s,]*+")
Parts = list[tuple[str, bytes]]


class ImportFault(Exception):
    """Nothing, or nothing more, can be imported: one line."""


class Record(NamedTuple):
    """`number`: from 1, as they stand. `data`: what was read, or why nothing was. `text`: the file of a caption."""

    number: int
    file: str
    data: Any
    text: str = ""


class Input(NamedTuple):
    """A source of samples. `records()` gives each with what is read by then, of `total`: bytes, or images."""

    name: str
    images: Storage
    column: str | None  # of captions; None: chats
    fingerprint: str  # a file's bytes; or names and sizes of images and captions, and the bytes of tables
    total: int
    records: Callable[[], Iterator[tuple[int, Record]]]


def open_input(uri: str, images: str | None, name: str | None, column: str) -> Input:
    """A file of chats, or a folder of captioned images. Raises `ImportFault`, `StorageError`."""
    home = Storage.open(uri)
    home.must_answer()
    kind, file = home.info().type, home.uri.rstrip("/").rpartition("/")[2]
    if kind == fs.FileType.Directory:
        if images:
            raise ImportFault("--images belongs to JSON: a folder holds its images itself")
        return _open_folder(home, name or file, column)
    if kind != fs.FileType.File:
        raise NotFound(f"cannot read {uri}: {NOT_FOUND}")
    home, root = home.parent(), Storage.open(images) if images else home.parent()
    root.must_answer()
    digest = hashlib.sha256()
    for _, piece in _pieces(home, file):
        digest.update(piece)
    name = name or file.rpartition(".")[0] or file
    return Input(name, root, None, digest.hexdigest(), home.size(file), lambda: _read(home, file))


def _open_folder(home: Storage, name: str, column: str) -> Input:
    """Tables as Hugging Face's `imagefolder` has them, else images with captions of the same name."""
    sizes = {entry.path: entry.size for entry in home.list(recursive=True) if "/." not in f"/{entry.path}"}
    images = [path for path in sizes if path.lower().endswith(_IMAGES)]
    tables = [path for path in sizes if posixpath.basename(path) in ("metadata.csv", "metadata.jsonl")]
    if len({posixpath.dirname(path) for path in tables}) < len(tables):
        raise ImportFault(f"{home.uri}: metadata.csv and metadata.jsonl in one folder: keep one of them")
    texts = {path: text for path in images if (text := f"{posixpath.splitext(path)[0]}.txt") in sizes}
    known = [(path, sizes[path], sizes[texts[path]] if path in texts else None) for path in images]
    digest = hashlib.sha256(json.dumps([column, *known]).encode())
    for path in tables:
        digest.update(home.read(path))

    def records() -> Iterator[tuple[int, Record]]:
        number = before = 0
        for path in tables:
            for done, record in _read(home, path):
                number += 1
                yield before + done, record._replace(number=number)
            before += sizes[path]
        for number, path in enumerate([] if tables else images, 1):
            yield number, Record(number, path, {"file_name": posixpath.basename(path)}, texts.get(path, ""))

    total = sum(sizes[path] for path in tables) or len(images)
    return Input(name, home, column, digest.hexdigest(), total, records)


def _pieces(home: Storage, name: str) -> Iterator[tuple[int, bytes]]:
    size, read = home.size(name), home.reader(name)
    for start in range(0, size, _PIECE):
        yield min(start + _PIECE, size), read(start, min(start + _PIECE, size))


def _read(home: Storage, name: str) -> Iterator[tuple[int, Record]]:
    number = 0
    try:
        for number, (done, data) in enumerate((_rows if name.endswith(".csv") else _objects)(home, name), 1):
            yield done, Record(number, name, data)
    except (csv.Error, ValueError, RecursionError) as error:
        raise ImportFault(f"{home.where(name)}: damaged behind record {number}: {error}") from error


def _rows(home: Storage, name: str) -> Iterator[tuple[int, Any]]:
    data = home.read(name)
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    return ((len(data), row) for row in rows)


def _objects(home: Storage, name: str) -> Iterator[tuple[int, Any]]:
    """The objects of a JSON array, or of JSON lines: there one that is damaged is a reason, and the others go on."""
    decoder, parser = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    text, state, at = "", "", 0  # state: "[" in an array, "]" behind it, "{" in lines
    for done, piece in _pieces(home, name):
        text, at = text[at:] + decoder.decode(piece), 0
        while (found := _separator.match(text, at)) and (at := found.end()) < len(text):
            if state + text[at] in ("[", "[]"):
                state, at = text[at], at + 1
                continue
            state = state or "{"
            if state == "]":
                raise ValueError(f"{text[at : at + 20]!r} stands behind the array")
            try:
                value, end = parser.raw_decode(text, at)
            except json.JSONDecodeError as error:
                value, end = error.msg, text.find("\n", at)
                if state == "[" or end < 0:
                    if len(text) - at > _MOST:
                        raise
                    break  # it may end in the next piece
            yield done, value
            at = end
    if state == "[":
        raise ValueError(f"no JSON, or cut off: {text[at : at + 40]!r}")
    if text[at:]:
        yield done, "it is cut off"


def run_import(
    given: Input, out: Storage, size: int, max_refused: float, workers: int, told: Callable[[int, int], None]
) -> tuple[DatasetManifest, bool]:
    """The manifest, which is written last, and whether anything was to do.

    size: bytes of a shard at most, unless one sample has more. Raises `ImportFault`, also where more than the share
    `max_refused` of the records was refused or the folder holds something else; `StorageError`.
    """
    out.must_answer()
    prints = {"import": "1", "input": given.fingerprint, "size": str(size)}
    try:
        manifest = read_manifest(out)
    except NotFound:
        strays = [entry.path for entry in out.list(recursive=True) if not entry.path.startswith(".")]
    else:
        if (manifest.name, manifest.fingerprints) != (given.name, prints):
            raise ImportFault(f"{out.uri}: holds another data set ({manifest.name}): choose another --out")
        out.delete(_MARK)
        return manifest, False
    if strays and _MARK not in strays:
        raise ImportFault(f"{out.uri}: holds {strays[0]}, which is of no import: choose an --out that is empty or new")
    out.write(_MARK, b"")
    out.sweep_temporary(0)
    for path in strays:
        if path.endswith((".tar", SUFFIX)):
            out.delete(path)  # of the import that ended before
    shards: list[ShardEntry] = []
    waiting: list[tuple[str, Parts]] = []
    refused: list[dict[str, Any]] = []
    seen = nbytes = 0
    records = given.records()
    with ThreadPoolExecutor(workers) as pool:
        for batch in iter(lambda: list(islice(records, _BATCH)), []):
            for (_, record), parts in zip(batch, pool.map(lambda each: _make(given, each[1]), batch), strict=True):
                seen += 1
                key = f"{given.fingerprint[:12]}-{record.number:09d}"
                if isinstance(parts, str):
                    refused.append({"file": record.file, "record": record.number, "key": key, "reason": parts})
                    continue
                more = sum(BLOCK + len(data) + -len(data) % BLOCK for _, data in parts)
                if waiting and nbytes + more + len(END) > size:
                    shards.append(_write(out, len(shards), waiting))
                    waiting, nbytes = [], 0
                waiting.append((key, parts))
                nbytes += more
            told(batch[-1][0], given.total)
            if seen >= _TRIAL and len(refused) == seen and max_refused < 1:
                break
    if waiting:
        shards.append(_write(out, len(shards), waiting))
    out.write(REFUSED, b"".join(json.dumps(line).encode() + b"\n" for line in refused))
    if len(refused) > max_refused * seen or not shards:
        first = "; ".join("{file}, record {record}: {reason}".format(**line) for line in refused[:3])
        much = f"{len(refused):,} of {seen:,} records are refused, --max-refused is {max_refused:g}"
        what = (
            f"{much}; {out.where(REFUSED)} names them: {first}" if seen else f"{given.name}: there is no record in it"
        )
        raise ImportFault(" ".join(what.split()))
    counts = {"seen": seen, "kept": seen - len(refused), "refused": len(refused)}
    manifest = DatasetManifest(name=given.name, fingerprints=prints, funnel=counts, shards=shards)
    write_manifest(out, manifest)
    out.delete(_MARK)
    return manifest, True


def _write(out: Storage, number: int, samples: list[tuple[str, Parts]]) -> ShardEntry:
    return write_shard(out, f"{number:06d}.tar", samples, durable=True)


def _make(given: Input, record: Record) -> Parts | str:
    """A sample's members, or why there are none."""
    try:
        if given.column is None:
            task, (paths, fields) = "chat", read_chat(record.data)
        else:
            task, (paths, fields) = "caption", _read_caption(given, record)
        images = [_read_image(given.images, path) for path in paths]
        sample = make_sample(task, [name for name, _ in images], given.name, **fields)
    except Unavailable:
        raise  # not the record's fault
    except (Refused, SchemaError, StorageError, UnicodeError) as error:
        return str(error)
    return [*zip(sample.images, (data for _, data in images), strict=True), ("json", dump_sample(sample))]


def _read_caption(given: Input, record: Record) -> tuple[list[str], dict[str, Any]]:
    row = record.data if isinstance(record.data, dict) else {}
    name, text = row.get("file_name"), row.get(given.column)
    if record.text:
        text = given.images.read(record.text).decode("utf-8-sig")
    if not isinstance(name, str) or not isinstance(text, str):
        raise Refused(f"a .txt beside it, or file_name and {given.column} of a table are needed: {record.data!r:.80}")
    return [posixpath.join(posixpath.dirname(record.file), name)], {"text": text.strip()}


def _read_image(root: Storage, path: str) -> tuple[str, bytes]:
    """Format and bytes of an image below the root; a name with the root before it is below it, too."""
    rest = path.removeprefix(root.uri.rstrip("/") + "/")
    name = posixpath.normpath(rest)
    if not rest or rest.startswith("/") or "://" in rest or name.split("/")[0] in (".", "..") or "\0" in rest:
        raise Refused(f"the image {path!r:.200} is not below {root.uri}")
    if root.is_local and not root.exists(name):  # a pipe would be waited for
        raise Refused(f"there is no image {name!r:.200}")
    data = root.read(name)
    return format_of(data), data
