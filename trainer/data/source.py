"""Data sets as a run reads them: which shards there are, in which order, and how many samples each holds.

The one decision: what is known before the first sample is the manifest's, as arrays. Nothing is held of a single
sample, so 1.4 G of them in 140,000 shards cost some megabytes, and no index is read before its shard is.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shards.index import SUFFIX
from shards.manifest import NAME, ManifestError, place, read_manifest
from shards.storage import NotFound, Storage, StorageError
from trainer.errors import DataError

Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set, packed or as a curation run left it.

    name: where it lies. urls: its shards, as the manifest at the root of `storage` names them; counts, sizes: samples
    and bytes of each. fingerprint: hex, of all shards' sha256 in their order.
    """

    name: str
    storage: Storage
    urls: tuple[str, ...]
    counts: Whole
    sizes: Whole
    fingerprint: str

    @property
    def nsamples(self) -> int:
        return int(self.counts.sum())

    @property
    def is_local(self) -> bool:
        """Whether all of it lies on a disk, also what the manifest names elsewhere."""
        return self.storage.is_local and not any("://" in url for url in self.urls)


def open_source(uri: str, check: bool = False) -> Source:
    """A data set by its folder or its manifest.json, on a disk or a store. Raises `DataError`.

    check: listings must show every shard and index in its size, and stderr is told of a data set that is not complete.
    """
    folder, name = uri.rstrip("/") or "/", NAME
    if folder.endswith(".json"):
        above, slash, name = folder.rpartition("/")
        folder = above or slash or "."
    try:
        storage = Storage.open(folder)
        manifest = read_manifest(storage, name)
        if not (shards := manifest.shards):
            raise DataError(f"{uri}: the data set has no shards: its run kept nothing, or has not begun")
        urls, hashes = tuple(shard.url for shard in shards), "".join(shard.sha256 for shard in shards)
        counts, sizes = np.array([(shard.nsamples, shard.bytes) for shard in shards], np.int64).T.copy()
        source = Source(storage.uri, storage, urls, counts, sizes, hashlib.sha256(hashes.encode()).hexdigest())
        if check:
            _check(source)
    except (StorageError, ManifestError) as error:
        hint = ": a data set is a folder that `shards pack` or a run wrote" if isinstance(error, NotFound) else ""
        raise DataError(f"{error}{hint}") from error
    if check and not manifest.complete:
        sys.stderr.write(f"warning: {uri}: not complete, says its manifest: what it lists is read\n")
    return source


def _check(source: Source) -> None:
    @cache
    def listed(home: str, folder: str) -> dict[str, int]:
        storage = Storage.open(home) if home else source.storage
        return {entry.path: entry.size for entry in storage.list(folder)}

    for url, count, size in zip(source.urls, source.counts.tolist(), source.sizes.tolist(), strict=True):
        home, path = place(source.storage, url)
        for name, wanted in ((path, size), (path + SUFFIX, 8 * (count + 1))):
            if (found := listed(home, path.rpartition("/")[0]).get(name)) != wanted:
                has = "is missing" if found is None else f"has {found:,} bytes"
                raise DataError(f"{source.name}: {name} {has}, by the manifest {wanted:,} are needed: copy it again")
