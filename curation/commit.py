"""Writes a decided unit: ledger part, shard, index, review samples, and the manifest that makes them count, last.

A commit may be repeated by a retried task or a second driver: it writes the same bytes under the same names, and only
the manifest says that they are there.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import collector, ledger
from curation.counts import count
from curation.profile import Fingerprints, Profile
from curation.unit import Image, Judged, review_rows, thumbnail
from curation.units import Unit
from shards.index import encode_index
from shards.storage import Storage
from shards.tar import build_shard

MANIFEST_VERSION = "2"
_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@collector.paused()
def commit(
    profile: Profile, prints: Fingerprints, judged: Judged, output: Storage, *, shards: bool = True
) -> dict[str, Any]:
    """Decides the unit for good, writes its files and gives back its manifest (also written, last).

    shards: false writes no shard: for a sample of units that is scored to find a threshold.
    """
    started = time.perf_counter()
    table = ledger.settle(judged.rows, profile.filters, judged.problems)
    files = {"ledger": write_described(output, f"ledger/{judged.unit.short}.parquet", ledger.to_parquet(table))}
    pictures = {row: thumbnail(judged.images[row]) for row in fit_for_review(table)}
    files |= write_samples(profile, judged.unit, table, judged.images, pictures, output, shards=shards)
    judged.seconds["commit"] = time.perf_counter() - started
    rest = {"hits": judged.hits, "warnings": judged.warnings, "files": files}
    manifest = unit_manifest(profile, prints, judged.unit, table, rest, judged.seconds)
    output.write(f"units/{judged.unit.short}.json", json.dumps(manifest, ensure_ascii=False).encode(), durable=True)
    return manifest


def unit_manifest(
    profile: Profile,
    prints: Fingerprints,
    unit: Unit,
    table: pa.Table,
    rest: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What is said of a decided unit. rest: `hits`, `warnings`, `files` and whatever else there is to say of it."""
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "profile": profile.name,
        "unit_id": unit.unit_id,
        "input": {"path": unit.path, "size": unit.size, "range": [unit.start, unit.stop]},
        "score_fp": prints.score,
        "decision_fp": prints.decision,
        **count(profile.filters, table),
        **rest,
        "seconds": {step: round(value, 6) for step, value in seconds.items()},
    }
    # Numbers that no other file repeats (histograms, seconds) are guarded by the manifest's own hash.
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, ensure_ascii=False).encode()).hexdigest()
    return manifest


def write_samples(
    profile: Profile,
    unit: Unit,
    table: pa.Table,
    images: Sequence[Image],
    pictures: Mapping[int, bytes | None],
    output: Storage,
    *,
    shards: bool = True,
) -> dict[str, Any]:
    """Writes shard, index and review samples of a decided unit; gives what its manifest says of them.

    images: by row, there for every kept one. pictures: thumbnails of the rows that `fit_for_review` names.
    """
    files: dict[str, Any] = {"shard": None, "index": None}
    kept = np.flatnonzero(np.asarray(pc.is_null(table.column("reason")), dtype=bool))
    if len(kept) and shards:
        shard = build_shard(_samples(profile, table, images, kept.tolist()), hashed=False)
        sha256 = output.write_hashed(f"shards/{unit.short}.tar", shard.buffers, durable=True)
        files["shard"] = {"path": f"shards/{unit.short}.tar", "bytes": shard.size, "sha256": sha256}
        files["index"] = write_described(output, f"shards/{unit.short}.tar.idx", encode_index(shard.offsets))
    elif shards:  # made again, a unit may keep nothing where it kept something
        for ending in ("tar", "tar.idx"):
            output.delete(f"shards/{unit.short}.{ending}")
    files["samples"] = write_described(output, f"samples/{unit.short}.parquet", _review(table, pictures))
    return files


def write_described(output: Storage, path: str, data: bytes | pa.Buffer) -> dict[str, Any]:
    """Writes a file that a manifest will vouch for; gives what it says of it."""
    output.write(path, data, durable=True)
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _samples(
    profile: Profile, table: pa.Table, images: Sequence[Image], kept: Sequence[int]
) -> list[tuple[str, list[tuple[str, bytes | memoryview]]]]:
    """(key, members) of the kept samples in the order of the input; image bytes are the source's."""
    score_names = [name for name in table.column_names if name not in ledger.BASE.names + ledger.VERDICT.names]
    samples = []
    for row, record in zip(kept, table.take(pa.array(kept)).to_pylist(), strict=True):
        image = images[row]
        if image is None:
            raise AssertionError(f"{record['key']} is kept but its image is gone")
        about = {name: record[name] for name in ("key", "source_key", "url", "caption_raw", "width", "height")}
        about["scores"] = {name: _short_float(record[name]) for name in score_names if record[name] is not None}
        # The ledger's column is JSON of the same form already.
        text = f'{_LINE.encode(about)[:-1]},"source":{record["source"]}}}'
        samples.append(
            (record["key"], [(record["format"], image), ("txt", record["caption"].encode()), ("json", text.encode())])
        )
    return samples


def _short_float(value: Any) -> Any:
    """float32 scores without the digits that float64 adds to them."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def fit_for_review(table: pa.Table) -> list[int]:
    """Rows of a decided unit whose picture people will look at.

    What the header scan found unfit to decode is not decoded for a picture of it either.
    """
    return [row for row, reason in _review_rows(table) if not (reason or "").startswith(("unreadable:", "fetch:"))]


def _review_rows(table: pa.Table) -> list[tuple[int, str | None]]:
    reasons = table.column("reason").to_pylist()
    rows = sorted(review_rows(table.column("key").to_pylist(), reasons))
    return [(row, reasons[row]) for row in rows]


def _review(table: pa.Table, pictures: Mapping[int, bytes | None]) -> pa.Buffer:
    """A few samples per reason, with all that the ledger says of them and a thumbnail."""
    rows = [row for row, _ in _review_rows(table)]
    thumbnails = pa.array([pictures.get(row) for row in rows], pa.binary())
    return ledger.to_parquet(table.take(pa.array(rows, pa.int64())).append_column("thumbnail", thumbnails))


# Every file that a commit, or its failure, leaves: <unit's short id> and an ending.
_FILES = re.compile(r"(?:ledger|shards|samples|scores|failed)/([0-9a-f]{12})(?:\.parquet|\.tar|\.tar\.idx|\.json)\Z")


def remove_others(output: Storage, units: set[str]) -> int:
    """Deletes the files of all units but these (short ids), and gives how many units they were of.

    Such a file belongs to a unit that has left the input: its manifest has gone before, or it was never committed.
    """
    found: set[str] = set()
    for folder in ("ledger", "shards", "samples", "scores", "failed"):
        for entry in output.list(folder):
            match = _FILES.match(entry.path)
            if match and match[1] not in units:
                output.delete(entry.path)
                found.add(match[1])
    return len(found)


def record_failure(output: Storage, unit: Unit, error: str) -> None:
    """Says under `failed/` why a unit could not be committed; a later commit of the unit takes it away."""
    record = {"unit_id": unit.unit_id, "input": unit.name, "error": error}
    output.write(f"failed/{unit.short}.json", json.dumps(record, ensure_ascii=False).encode())
