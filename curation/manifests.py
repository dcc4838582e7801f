"""Unit manifests of a run: which units are done, their numbers, and compaction so that listing stays quick.

A unit is committed when its manifest stands, loose (`units/<unit>.json`) or compacted (`units/_merged-<n>.parquet`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.ledger import to_parquet
from shards.storage import Storage

FOLDER = "units"
# Without these a unit manifest is none.
_KEYS = ("unit_id", "decision_fp", "files", "warnings", "listed", "seen", "kept", "reasons")
# Loose manifests are compacted once there are as many as a wave has units.
COMPACT_AT = 2_000


class ManifestError(Exception):
    """A manifest that cannot be read: one line with the file and what to do."""


def committed(output: Storage) -> dict[str, str]:
    """unit id -> decision fingerprint of every committed unit; reads two columns of the compacted ones."""
    found: dict[str, str] = {}
    for path in _merged(output):
        table = _read_merged(output, path, ["unit_id", "decision_fp"])
        found.update(zip(*(table.column(name).to_pylist() for name in ("unit_id", "decision_fp")), strict=True))
    for manifest in _loose(output):
        found[manifest["unit_id"]] = manifest["decision_fp"]
    return found


def read_all(output: Storage, unit_ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every committed unit's manifest, once, in the order of unit ids within a file. unit_ids: only these."""
    seen: set[str] = set()
    loose = {manifest["unit_id"]: manifest for manifest in _loose(output)}
    for path in _merged(output):
        for text in _read_merged(output, path, ["manifest"]).column("manifest").to_pylist():
            manifest: dict[str, Any] = json.loads(text)
            if manifest["unit_id"] in seen or manifest["unit_id"] in loose:
                continue
            seen.add(manifest["unit_id"])
            if unit_ids is None or manifest["unit_id"] in unit_ids:
                yield manifest
    for unit_id, manifest in sorted(loose.items()):
        if unit_ids is None or unit_id in unit_ids:
            yield manifest


def compact(output: Storage, at: int = COMPACT_AT) -> int:
    """Merges loose manifests into one Parquet file once there are `at` of them; gives how many it merged.

    The loose ones go after the merged file stands: killed in between, both are there and say the same.
    """
    manifests = list(_loose(output))
    if len(manifests) < at:
        return 0
    manifests.sort(key=lambda manifest: str(manifest["unit_id"]))
    table = pa.table(
        {
            "unit_id": [manifest["unit_id"] for manifest in manifests],
            "decision_fp": [manifest["decision_fp"] for manifest in manifests],
            "manifest": [json.dumps(manifest, ensure_ascii=False) for manifest in manifests],
        }
    )
    numbers = [int(path.rpartition("-")[2].removesuffix(".parquet")) for path in _merged(output)]
    output.write(f"{FOLDER}/_merged-{max(numbers, default=-1) + 1}.parquet", to_parquet(table))
    for manifest in manifests:
        output.delete(f"{FOLDER}/{manifest['unit_id'][:12]}.json")
    return len(manifests)


def failures(output: Storage) -> list[dict[str, Any]]:
    """What stands under `failed/`, by input."""
    records = [read_json(output, entry.path, ("input", "error")) for entry in output.list("failed", ".json")]
    return sorted(records, key=lambda record: str(record["input"]))


def _merged(output: Storage) -> list[str]:
    return [entry.path for entry in output.list(FOLDER, ".parquet")]


def _loose(output: Storage) -> Iterator[dict[str, Any]]:
    for entry in output.list(FOLDER, ".json"):
        yield read_json(output, entry.path, _KEYS)


def read_json(output: Storage, path: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """A small JSON object that a run wrote. Raises `ManifestError` where it is damaged or lacks a key."""
    try:
        value = json.loads(output.read(path))
    except ValueError as error:
        raise ManifestError(f"{output.uri}/{path}: damaged ({error}): delete it and run again") from error
    lacking = [key for key in keys if key not in value] if isinstance(value, dict) else list(keys)
    if lacking:
        raise ManifestError(f"{output.uri}/{path}: damaged (no {lacking[0]!r} in it): delete it and run again")
    found: dict[str, Any] = value
    return found


def _read_merged(output: Storage, path: str, columns: list[str]) -> pa.Table:
    try:
        with output.open_input(path) as file:
            return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, ValueError, KeyError) as error:
        raise ManifestError(
            f"{output.uri}/{path}: damaged ({str(error).splitlines()[0]}): delete it, and its units run again"
        ) from error
