"""Unit manifests of a run: which units are done, their numbers, and compaction so that a huge run is listed quickly.

A unit is committed when its manifest stands, loose (`units/<unit>.json`) or in a compacted file
(`units/_merged-<n>-<hash>.parquet`). The one decision behind this module: what stands is only ever replaced by
something that says as much, and is written first. So a unit may stand twice, after a kill or beside another driver, but
never nowhere; readers count it once: the loose manifest goes before compacted ones, a later file before an earlier one.

A compacted file has a row per unit: id, decision, kept, shard, and the manifest's text. Its metadata hold the sums of
all rows, so that totals of 100,000 units need no manifest parsed (0.6 s; 90 s with parsing, on one core). Its name
carries the hash of its bytes: drivers that compact at once never write one name with two contents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.stats import Totals
from shards.manifest import ShardEntry
from shards.storage import Entry, NotFound, Storage, StorageError

# Where a run keeps them; a later decision keeps what it decided under `decided/`, before its shards are there.
FOLDER = "units"
# Without these a unit manifest is none.
_KEYS = ("unit_id", "decision_fp", "files", "warnings", "listed", "seen", "kept", "reasons")
# Loose manifests are compacted once there are as many as a wave has units.
COMPACT_AT = 2_000
# The hash is missing in files of the first format, which also lack `kept`, `shard` and the sums.
_MERGED = re.compile(r"_merged-(\d+)(?:-[0-9a-f]{16})?\.parquet\Z")
_SHARD = pa.struct([("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])
_TOTALS = b"totals"
# Loose manifests are read and deleted side by side: object stores answer in 20 to 50 ms each.
_REQUESTS = 16
_ATTEMPTS = 5


class ManifestError(Exception):
    """A manifest that cannot be read: one line with the file and what to do."""


@dataclass(frozen=True)
class Summary:
    """Sums over committed units, and each one's shard by unit id (None: it kept nothing)."""

    totals: Totals
    shards: dict[str, ShardEntry | None]


@dataclass(frozen=True)
class _Loose:
    """A loose manifest: as text, which takes a sixth of the memory."""

    entry: Entry
    decision: str
    text: bytes

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass(frozen=True)
class _Standing:
    """Everything that stands: loose manifests by unit id, compacted files by path, and which one speaks for a unit."""

    loose: dict[str, _Loose]
    merged: dict[str, list[str]]  # unit ids by path, older files first
    speaks: dict[str, tuple[str, str]]  # unit id -> path, decision fingerprint


def committed(output: Storage, folder: str = FOLDER) -> dict[str, str]:
    """unit id -> decision fingerprint of every committed unit; reads two columns of the compacted ones."""
    return {unit_id: decision for unit_id, (_, decision) in _standing(output, folder).speaks.items()}


def read_all(output: Storage, unit_ids: set[str] | None = None, folder: str = FOLDER) -> Iterator[dict[str, Any]]:
    """Every committed unit's manifest, once, in the order of unit ids within a file. unit_ids: only these."""
    standing = _standing(output, folder)
    for path, ids in standing.merged.items():
        wanted = {unit_id for unit_id in ids if standing.speaks[unit_id][0] == path}
        wanted = wanted if unit_ids is None else wanted & unit_ids
        if wanted:
            yield from _manifests(output, path, wanted)
    for unit_id, loose in sorted(standing.loose.items()):
        if unit_ids is None or unit_id in unit_ids:
            yield loose.manifest


def sum_up(output: Storage, decision: str, unit_ids: set[str] | None = None, folder: str = FOLDER) -> Summary:
    """Totals and shards of the committed units with this decision fingerprint. unit_ids: only these.

    A compacted file whose rows all count adds the sums that it carries; of any other the rows that count are parsed.
    """
    return _sum_up(output, _standing(output, folder), decision, unit_ids)


def sum_up_listed(output: Storage, decision: str, listed: Sequence[Entry]) -> tuple[Summary, set[str]] | None:
    """As `sum_up`, of the files of a listing and no others; and the ids of its units, of any decision.

    None where one of the files has gone since.
    """
    try:
        loose = _read(output, [entry for entry in listed if entry.path.endswith(".json")])
        standing = _standing_of(output, loose, listed)
    except NotFound:
        return None
    if len(standing.loose) != sum(entry.path.endswith(".json") for entry in listed):
        return None
    return _sum_up(output, standing, decision, None), set(standing.speaks)


def _sum_up(output: Storage, standing: _Standing, decision: str, unit_ids: set[str] | None) -> Summary:
    counts = {
        unit_id
        for unit_id, (_, found) in standing.speaks.items()
        if found == decision and (unit_ids is None or unit_id in unit_ids)
    }
    totals = Totals()
    shards: dict[str, ShardEntry | None] = {}
    for path, ids in standing.merged.items():
        wanted = {unit_id for unit_id in ids if unit_id in counts and standing.speaks[unit_id][0] == path}
        whole = _sums(output, path, ids) if len(wanted) == len(ids) else None
        if whole is not None:
            totals.merge(whole.totals)
            shards.update(whole.shards)
        else:
            _add(totals, shards, f"{output.uri}/{path}", _manifests(output, path, wanted) if wanted else ())
    for unit_id, loose in sorted(standing.loose.items()):
        if unit_id in counts:
            _add(totals, shards, f"{output.uri}/{loose.entry.path}", [loose.manifest])
    totals.warnings.sort()  # by file, whatever was compacted when
    return Summary(totals, shards)


def read_loose(output: Storage, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """These loose manifests, by unit id, but for those that are there no more."""
    return [loose.manifest for _, loose in sorted(_read(output, entries).items())]


def add(summary: Summary, where: str, manifests: Iterable[dict[str, Any]]) -> None:
    """Adds units to sums that lack them. where: what messages call the manifests."""
    _add(summary.totals, summary.shards, where, manifests)
    summary.totals.warnings.sort()


def compact(output: Storage, at: int = COMPACT_AT, folder: str = FOLDER) -> int:
    """Moves loose manifests into one compacted file once there are `at` of them; gives how many it moved.

    The loose ones go after the file stands. Killed in between, or beside another driver, both stand: the next
    compaction only deletes what is compacted already.
    """
    if len(output.list(folder, ".json")) < at:
        return 0
    standing = _standing(output, folder)
    fresh = _not_compacted(output, standing)
    if fresh:
        _write_merged(output, folder, max((_number(path) for path in standing.merged), default=-1) + 1, fresh)
    # One that was committed anew since it was read stays loose.
    now = {entry.path: entry for entry in output.list(folder, ".json")}
    gone = [loose.entry.path for loose in standing.loose.values() if now.get(loose.entry.path) == loose.entry]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(output.delete, gone))
    return len(gone)


def forget(output: Storage, unit_ids: set[str], folder: str = FOLDER) -> int:
    """Takes units back: their manifests go, so that they count as not done; gives how many stood.

    Their other files stay until they are committed again. Killed in the middle, some are forgotten: repeat it.
    """
    standing = _standing(output, folder)
    for path, ids in standing.merged.items():
        if unit_ids.isdisjoint(ids):
            continue
        left = set(ids) - unit_ids
        if left:
            _write_merged(output, folder, _number(path), list(_manifests(output, path, left)))
        output.delete(path)
    # After the compacted ones, which would speak for the unit again.
    gone = [loose.entry.path for unit_id, loose in standing.loose.items() if unit_id in unit_ids]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(output.delete, gone))
    return len(unit_ids & standing.speaks.keys())


def failures(output: Storage) -> list[dict[str, Any]]:
    """What stands under `failed/`, by input."""
    records = [read_json(output, entry.path, ("input", "error")) for entry in output.list("failed", ".json")]
    return sorted(records, key=lambda record: str(record["input"]))


def read_json(output: Storage, path: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """A small JSON object that a run wrote. Raises `ManifestError` where it is damaged or lacks a key."""
    return _json_of(output, path, output.read(path), keys)


def _json_of(output: Storage, path: str, text: bytes, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{output.uri}/{path}: damaged ({error}): delete it and run again") from error
    lacking = [key for key in keys if key not in value] if isinstance(value, dict) else list(keys)
    if lacking:
        raise ManifestError(f"{output.uri}/{path}: damaged (no {lacking[0]!r} in it): delete it and run again")
    found: dict[str, Any] = value
    return found


def _standing(output: Storage, folder: str) -> _Standing:
    for _ in range(_ATTEMPTS):
        # Loose ones first: what a compaction moves meanwhile is then met twice, in the other order never.
        loose = _loose(output, folder)
        try:
            return _standing_of(output, loose, output.list(folder, ".parquet"))
        except NotFound:  # another process rewrote it (`forget`) since it was listed
            continue
    raise ManifestError(f"{output.uri}/{folder}: another process keeps changing it: wait for its end, then run again")


def _standing_of(output: Storage, loose: dict[str, _Loose], listed: Iterable[Entry]) -> _Standing:
    """What speaks for which unit. listed: compacted files among others. Raises `NotFound`."""
    merged: dict[str, list[str]] = {}
    speaks: dict[str, tuple[str, str]] = {}
    paths = [entry.path for entry in listed if _MERGED.search(entry.path)]
    for path in sorted(paths, key=lambda path: (_number(path), path)):
        ids, decisions = _columns(output, path, "unit_id", "decision_fp")
        merged[path] = ids
        speaks.update((unit_id, (path, decision)) for unit_id, decision in zip(ids, decisions, strict=True))
    speaks.update((unit_id, (found.entry.path, found.decision)) for unit_id, found in loose.items())
    return _Standing(loose, merged, speaks)


def _loose(output: Storage, folder: str) -> dict[str, _Loose]:
    return _read(output, output.list(folder, ".json"))


def _read(output: Storage, entries: Iterable[Entry]) -> dict[str, _Loose]:
    def read(entry: Entry) -> tuple[str, _Loose] | None:
        try:
            text = output.read(entry.path)
        except NotFound:  # compacted since it was listed
            return None
        found = _json_of(output, entry.path, text, _KEYS)
        return found["unit_id"], _Loose(entry, found["decision_fp"], text)

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return dict(pair for pair in pool.map(read, entries) if pair is not None)


def _number(path: str) -> int:
    match = _MERGED.search(path)
    if match is None:
        raise ValueError(f"{path!r} is no compacted file")
    return int(match[1])


def _not_compacted(output: Storage, standing: _Standing) -> list[dict[str, Any]]:
    """The loose manifests, by unit id, that no compacted file holds; a repeated commit differs in its seconds only."""
    compacted: dict[str, dict[str, Any]] = {}
    for path, ids in standing.merged.items():  # of two, the later one speaks
        both = standing.loose.keys() & set(ids)
        compacted.update(
            (manifest["unit_id"], manifest) for manifest in (_manifests(output, path, both) if both else ())
        )
    loose = ((unit_id, found.manifest) for unit_id, found in sorted(standing.loose.items()))
    return [
        manifest
        for unit_id, manifest in loose
        if unit_id not in compacted or _work(manifest) != _work(compacted[unit_id])
    ]


def _work(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in ("seconds", "sha256")}


def _write_merged(output: Storage, folder: str, number: int, manifests: Iterable[dict[str, Any]]) -> None:
    ordered = sorted(manifests, key=lambda manifest: str(manifest["unit_id"]))
    totals = Totals()
    for manifest in ordered:
        totals.add(manifest)
    shards = [manifest["files"]["shard"] for manifest in ordered]
    table = pa.table(
        {
            "unit_id": [manifest["unit_id"] for manifest in ordered],
            "decision_fp": [manifest["decision_fp"] for manifest in ordered],
            "kept": pa.array([manifest["kept"] for manifest in ordered], pa.int64()),
            "shard": pa.array(shards, _SHARD),
            "manifest": [json.dumps(manifest, ensure_ascii=False) for manifest in ordered],
        }
    )
    sums = json.dumps(asdict(totals), ensure_ascii=False).encode()
    table = table.replace_schema_metadata({_TOTALS: hashlib.sha256(sums).hexdigest().encode() + sums})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue()
    name = f"_merged-{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    output.write(f"{folder}/{name}", data, durable=True)


@contextmanager
def _merged(output: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """A compacted file, open; the checksums of what is read of it are compared."""
    with _telling(f"{output.uri}/{path}"), output.open_input(path) as file:
        yield pq.ParquetFile(file, page_checksum_verification=True)


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Damage in a manifest as one line. Arrow raises plain `OSError` for damage as for a network that fails."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ManifestError(
            f"{where}: cannot be read ({reason}): if it is damaged, delete it, and its units run again"
        ) from error


def _columns(output: Storage, path: str, *names: str) -> list[list[Any]]:
    with _merged(output, path) as file:
        table = file.read(columns=list(names))
        return [table.column(name).to_pylist() for name in names]


def _manifests(output: Storage, path: str, unit_ids: set[str]) -> Iterator[dict[str, Any]]:
    """The manifests of these units in a compacted file."""
    ids, texts = _columns(output, path, "unit_id", "manifest")
    for unit_id, text in zip(ids, texts, strict=True):
        if unit_id in unit_ids:
            with _telling(f"{output.uri}/{path}"):
                manifest: dict[str, Any] = json.loads(text)
            yield manifest


def _sums(output: Storage, path: str, ids: list[str]) -> Summary | None:
    """What a compacted file says of all its rows; None where it has no sums, or they are not of these rows."""
    with _merged(output, path) as file:
        schema = file.schema_arrow
        # Parquet's checksums cover columns, not metadata: the sums bring a hash of their own.
        text = (schema.metadata or {}).get(_TOTALS, b"")
        digest, sums = text[:64], text[64:]
        if hashlib.sha256(sums).hexdigest().encode() != digest or not {"kept", "shard"} <= set(schema.names):
            return None
        totals = Totals(**json.loads(sums))
        table = file.read(columns=["kept", "shard"])
        kept, shards = table.column("kept").to_pylist(), table.column("shard").to_pylist()
        if (totals.units, totals.kept) != (len(ids), sum(kept)):
            return None
        entries = [_entry(count, shard) for count, shard in zip(kept, shards, strict=True)]
        return Summary(totals, dict(zip(ids, entries, strict=True)))


def _add(totals: Totals, shards: dict[str, ShardEntry | None], where: str, manifests: Iterable[dict[str, Any]]) -> None:
    for manifest in manifests:
        with _telling(where):
            totals.add(manifest)
            shards[manifest["unit_id"]] = _entry(manifest["kept"], manifest["files"]["shard"])


def _entry(kept: int, shard: Mapping[str, Any] | None) -> ShardEntry | None:
    if shard is None:
        return None
    return ShardEntry(url=shard["path"], nsamples=kept, bytes=shard["bytes"], sha256=shard["sha256"])
