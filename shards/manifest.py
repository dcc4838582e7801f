"""The manifest of a data set: which shards it has, with counts, bytes and hashes, and how it came to be.

The one decision behind this module: `manifest.json` is a `wids` shard index with more in it, so `wids.ShardListDataset`
opens it as it is, and a data set can be moved as a folder: shards are named relative to the manifest.
"""

from __future__ import annotations

import json
import posixpath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shards.storage import Storage

NAME = "manifest.json"
LIST_NAME = "shards.txt"
SCHEMA_VERSION = 1


class ManifestError(ValueError):
    """A manifest cannot be used: one line with its name and the first thing that is wrong."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)


class ShardEntry(_Model):
    """One shard."""

    # Relative to the manifest's folder, or absolute. wids takes ? # ; for parts of a web address and drops them.
    url: Annotated[str, StringConstraints(pattern=r"^[^?#;\x00-\x1f]+$")]
    nsamples: Annotated[int, Field(gt=0)]
    bytes: Annotated[int, Field(gt=0, alias="filesize")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class DatasetManifest(_Model):
    """A data set: shards in their order, and what they were made by."""

    kind: Annotated[Literal["wids-shard-index-v1"], Field(alias="__kind__")] = "wids-shard-index-v1"
    wids_version: Literal[1] = 1
    schema_version: Literal[1] = 1
    name: str
    complete: bool = True  # false: units failed, or the run was limited
    fingerprints: dict[str, str] = {}
    funnel: dict[str, Any] = {}
    shards: Annotated[list[ShardEntry], Field(alias="shardlist")]

    @model_validator(mode="after")
    def _urls_are_unique(self) -> DatasetManifest:
        seen: set[str] = set()
        for shard in self.shards:
            if shard.url in seen:
                raise ValueError(f"the shard {shard.url} is listed twice")
            seen.add(shard.url)
        return self

    @property
    def nsamples(self) -> int:
        """Samples of all shards."""
        return sum(shard.nsamples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


def write_manifest(storage: Storage, manifest: DatasetManifest, name: str = NAME) -> None:
    """Writes `shards.txt` (one url a line), then the manifest, which is the commit mark: it comes last.

    The same manifest gives the same bytes. `shards.txt` lies in the manifest's folder.
    """
    record = manifest.model_dump(by_alias=True)
    shards = record.pop("shardlist")
    # Totals are written for people and for other tools; `read_manifest` checks that they are the sums.
    record |= {"total_samples": manifest.nsamples, "total_bytes": manifest.bytes, "shardlist": shards}
    try:
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    except ValueError as error:
        raise ManifestError(f"{storage.where(name)}: the funnel holds a number that JSON has not: {error}") from error
    folder = name.rpartition("/")[0]
    lines = "".join(f"{shard.url}\n" for shard in manifest.shards)
    storage.write(f"{folder}/{LIST_NAME}".lstrip("/"), lines.encode(), durable=True)
    storage.write(name, f"{text}\n".encode(), durable=True)


def read_manifest(storage: Storage, name: str = NAME) -> DatasetManifest:
    """Reads a manifest; `ManifestError` if it is damaged or of another version, `NotFound` if there is none."""
    where = storage.where(name)
    try:
        record = json.loads(storage.read(name))
    except ValueError as error:
        raise ManifestError(f"{where}: damaged: {error}: write it again") from error
    if not isinstance(record, dict):
        raise ManifestError(f"{where}: not a manifest: a JSON object is needed")
    if "shardlist" not in record:
        raise ManifestError(f"{where}: not a manifest of a data set: it lists no shards")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ManifestError(f"{where}: schema_version is {version}, this release reads {SCHEMA_VERSION}")
    totals = record.pop("total_samples", None), record.pop("total_bytes", None)
    try:
        manifest = DatasetManifest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ManifestError(f"{where}: {f'{place}: ' if place else ''}{first['msg']}{more}") from error
    if totals != (manifest.nsamples, manifest.bytes):
        raise ManifestError(
            f"{where}: says {totals[0]} samples and {totals[1]} bytes, its shards hold {manifest.nsamples} and "
            f"{manifest.bytes}: it was changed by hand or half-way; write it again"
        )
    return manifest


def place(storage: Storage, url: str) -> tuple[str, str]:
    """Where a shard lies: a folder ("" is the manifest's) and a path below it."""
    if "://" not in url and not url.startswith("/"):
        path = posixpath.normpath(url)
        if not path.startswith(".."):
            return "", path
        scheme, separator, rest = storage.uri.rpartition("://")
        url = scheme + separator + posixpath.normpath(posixpath.join(rest, url))
    folder, _, name = url.rpartition("/")
    return folder or "/", name
