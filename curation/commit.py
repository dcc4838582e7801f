"""Writes a decided unit: ledger part, shard, index, review samples, and the manifest that makes them count, last.

A commit may be repeated by a retried task or a second driver: it writes the same bytes under the same names, and only
the manifest says that they are there.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import ledger
from curation.profile import Fingerprints, Profile
from curation.unit import Judged, review_rows, thumbnail
from curation.units import Unit
from filters.base import Filter
from shards.index import encode_index
from shards.storage import Storage
from shards.tar import build_shard

MANIFEST_VERSION = "1"
BINS = 256


def commit(profile: Profile, prints: Fingerprints, judged: Judged, output: Storage) -> dict[str, Any]:
    """Decides the unit for good, writes its files and gives back its manifest (also written, last)."""
    started = time.perf_counter()
    decision = ledger.decide(judged.rows, profile.filters, judged.problems)
    reasons = decision.reason.to_pylist()
    for row in np.flatnonzero(np.asarray(decision.unscored, dtype=bool)):
        reasons[row] = _unscored_reason(profile.filters, judged.rows, int(row))
    schema = ledger.schema(profile.filters)
    table = judged.rows.append_column("failed", decision.failed)
    table = table.append_column("reason", pa.array(reasons, pa.string())).select(schema.names).cast(schema)
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    short = judged.unit.short
    files: dict[str, Any] = {"shard": None, "index": None}
    files["ledger"] = _write(output, f"ledger/{short}.parquet", ledger.to_parquet(table))
    if kept:
        shard = build_shard(_samples(profile, table, judged.images, kept))
        output.write(f"shards/{short}.tar", shard.buffers, durable=True)
        files["shard"] = {"path": f"shards/{short}.tar", "bytes": shard.size, "sha256": shard.sha256}
        files["index"] = _write(output, f"shards/{short}.tar.idx", encode_index(shard.offsets))
    files["samples"] = _write(output, f"samples/{short}.parquet", _review(table, judged.images, reasons))
    judged.seconds["commit"] = time.perf_counter() - started
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "profile": profile.name,
        "unit_id": judged.unit.unit_id,
        "input": {"path": judged.unit.path, "size": judged.unit.size, "range": [judged.unit.start, judged.unit.stop]},
        "score_fp": prints.score,
        "decision_fp": prints.decision,
        **count(profile, table),
        "hits": judged.hits,
        "warnings": judged.warnings,
        "files": files,
        "seconds": {step: round(value, 6) for step, value in judged.seconds.items()},
    }
    # Numbers that no other file repeats (histograms, seconds) are guarded by the manifest's own hash.
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, ensure_ascii=False).encode()).hexdigest()
    output.write(f"units/{short}.json", json.dumps(manifest, ensure_ascii=False).encode(), durable=True)
    return manifest


def _write(output: Storage, path: str, data: bytes | pa.Buffer) -> dict[str, Any]:
    output.write(path, data, durable=True)
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _unscored_reason(filters: Mapping[str, Filter], rows: pa.Table, row: int) -> str:
    """A filter left a score out without saying why: never kept in silence."""
    one = rows.slice(row, 1)
    for label, rule in filters.items():
        if not rule.keep(ledger.scores_of(one, label, rule))[0].is_valid:
            return f"{label}:error"
    raise AssertionError("an unscored row has a filter without a verdict")


def _samples(
    profile: Profile, table: pa.Table, images: Sequence[memoryview | None], kept: Sequence[int]
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
        about["source"] = json.loads(record["source"])
        text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
        samples.append(
            (record["key"], [(record["format"], image), ("txt", record["caption"].encode()), ("json", text.encode())])
        )
    return samples


def _short_float(value: Any) -> Any:
    """float32 scores without the digits that float64 adds to them."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _review(table: pa.Table, images: Sequence[memoryview | None], reasons: Sequence[str | None]) -> pa.Buffer:
    """Thumbnails of a few samples per reason, with all that the ledger says of them."""
    rows = sorted(review_rows(table.column("key").to_pylist(), reasons))
    # What the header scan found unfit to decode is not decoded for a picture of it either.
    fit = [not (reasons[row] or "").startswith(("unreadable:", "fetch:")) for row in rows]
    thumbnails = pa.array(
        [thumbnail(images[row]) if ok else None for row, ok in zip(rows, fit, strict=True)], pa.binary()
    )
    return ledger.to_parquet(table.take(pa.array(rows, pa.int64())).append_column("thumbnail", thumbnails))


def count(profile: Profile, table: pa.Table) -> dict[str, Any]:
    """The numbers of a ledger table that add up over units: reasons, failures, histograms.

    listed = fetch failures + seen; seen = unreadable + dropped by a mapper + dropped first per filter + kept.
    """
    reasons = table.column("reason").to_pylist()
    failed = table.column("failed").to_pylist()
    by_reason = Counter(reason for reason in reasons if reason is not None)
    fetch = sum(number for reason, number in by_reason.items() if reason.startswith("fetch:"))
    return {
        "listed": len(reasons),
        "seen": len(reasons) - fetch,
        "kept": reasons.count(None),
        "reasons": dict(sorted(by_reason.items())),
        "failed": dict(sorted(Counter(label for labels in failed for label in labels).items())),
        "failed_alone": dict(sorted(Counter(labels[0] for labels in failed if len(labels) == 1).items())),
        "scored": {
            label: int(pc.sum(_scored(ledger.scores_of(table, label, rule))).as_py() or 0)
            for label, rule in profile.filters.items()
        },
        "histograms": _histograms(profile, table, failed, reasons),
    }


def _scored(scores: pa.Table) -> pa.ChunkedArray:
    """Rows with a value in the filter's first score."""
    return pc.is_valid(scores.column(0))


def _histograms(
    profile: Profile, table: pa.Table, failed: list[list[str]], reasons: list[str | None]
) -> dict[str, dict[str, Any]]:
    """256 counts a numeric score between fixed edges (outliers in the end bins): `all` readable samples, and `others`,
    those that pass every other filter as far as those were scored."""
    usable = np.array(
        [reason is None or reason.split(":")[0] in profile.filters for reason in reasons],
        dtype=bool,
    )
    found = {}
    for label, rule in profile.filters.items():
        passes = usable & np.array([all(other == label for other in labels) for labels in failed], dtype=bool)
        for score, (low, high) in rule.bins.items():
            if score not in rule.scores:  # a score that this configuration of the filter does not make
                continue
            values = table.column(f"{label}_{score}").cast(pa.float64()).to_numpy()
            valid = ~np.isnan(values)
            found[f"{label}_{score}"] = {
                "low": low,
                "high": high,
                "all": _bin(values[valid & usable], low, high),
                "others": _bin(values[valid & passes], low, high),
            }
    return found


def _bin(values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float) -> list[int]:
    counts, _ = np.histogram(np.clip(values, low, np.nextafter(high, low)), bins=BINS, range=(low, high))
    return [int(number) for number in counts]


# Every file that a commit, or its failure, leaves: <unit's short id> and an ending.
_FILES = re.compile(r"(?:ledger|shards|samples|failed)/([0-9a-f]{12})(?:\.parquet|\.tar|\.tar\.idx|\.json)\Z")


def remove_others(output: Storage, units: set[str]) -> int:
    """Deletes the files of all units but these (short ids), and gives how many units they were of.

    Such a file belongs to a unit that has left the input: its manifest has gone before, or it was never committed.
    """
    found: set[str] = set()
    for folder in ("ledger", "shards", "samples", "failed"):
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
