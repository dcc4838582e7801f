"""A second try for the rows of a fetched shard that failed.

The one decision: the images that arrived once are never at risk. The new shard is written whole into `_retry/` first,
its stats last, and then copied over the old one; whatever is found there complete is copied by the next download.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.fetch.catalogue import RETRY_FOLDER as FOLDER
from curation.fetch.catalogue import STATS, Shard
from curation.fetch.worker import FETCHED, SUCCESS, Fetched, Fetcher, publish, with_fetched
from curation.raw import SourceError, fetch_reason
from shards.storage import NotFound, Storage
from shards.tar import TarError, group, scan

# The list itself would have to change for these; the owner of the image said no to the last.
FINAL = frozenset({"bad_url", "scheme", "opt_out"})


def worth_retrying(fetched: Fetched) -> bool:
    return bool(fetched.reasons.keys() - FINAL)


def finish_retries(output: Storage) -> int:
    """Copies complete shards of an interrupted retry over the old ones and drops incomplete ones; says how many."""
    entries = output.list(FOLDER.rstrip("/"))
    names = {entry.path.removeprefix(FOLDER).removesuffix(STATS) for entry in entries if entry.path.endswith(STATS)}
    finished = sum(_finish(output, name) for name in sorted(names))
    for entry in output.list(FOLDER.rstrip("/")):
        output.delete(entry.path)
    return finished


def _finish(output: Storage, name: str) -> bool:
    """Copies a shard that stands complete in `_retry/` over the old one."""
    try:
        stats = json.loads(output.read(f"{FOLDER}{name}{STATS}"))
        if any(output.size(f"{FOLDER}{name}.{kind}") != stats[kind]["bytes"] for kind in ("tar", "parquet")):
            return False
        _copy_over(output, name)
    except (NotFound, ValueError, KeyError, TypeError):
        return False  # not complete, or another worker copies it
    return True


def _copy_over(output: Storage, name: str) -> None:
    for kind in (".parquet", ".tar", STATS):
        output.write(f"{name}{kind}", output.view(f"{FOLDER}{name}{kind}"), durable=True)
    for kind in (STATS, ".parquet", ".tar"):
        output.delete(f"{FOLDER}{name}{kind}")


@dataclass(frozen=True)
class Retrier(Fetcher):
    """Fetches the failed rows of a fetched shard once more. The shard stays as it is where nothing new arrived."""

    def fetch(self, shard: Shard) -> Fetched:
        started = time.time()
        output = Storage.open(self.output_uri)
        _finish(output, shard.name)  # of a worker that died at it
        with output.open_input(f"{shard.name}.parquet") as file:
            table = pq.read_table(file)
        states = list(zip(table.column("status").to_pylist(), table.column("error_message").to_pylist(), strict=True))
        wanted = [
            row
            for row, (status, message) in enumerate(states)
            if status != SUCCESS and fetch_reason(message) not in FINAL
        ]
        keys = table.column("key").to_pylist()
        before = _images(output, f"{shard.name}.tar")
        if before.keys() != {key for key, (status, _) in zip(keys, states, strict=True) if status == SUCCESS}:
            raise SourceError(
                f"{output.where(shard.name)}.parquet: tells of other images than its tar holds: delete both, and the "
                "next download fetches the shard again"
            )
        with tempfile.TemporaryDirectory(prefix="winnow-fetch-") as folder:
            again = [keys[row] for row in wanted]
            spool = self.fetch_rows(
                Path(folder), shard.number, table.column("url").take(pa.array(wanted, pa.int64())).to_pylist(), again
            )
            arrived = {key: image for key in again if (image := spool.image(key)) is not None}
            if not arrived:
                return Fetched(shard.number, len(wanted), reasons=_reasons(spool.metas.values()), changed=False)
            old = {meta["key"]: meta for meta in table.select(FETCHED.names).to_pylist()}
            metas = [spool.metas.get(key, old[key]) for key in keys]
            publish(output, FOLDER, shard, with_fetched(table, metas), before | arrived, started)
            _copy_over(output, shard.name)
            size = sum(len(image) for image in arrived.values())
            failed = _reasons(meta for key, meta in spool.metas.items() if key not in arrived)
            return Fetched(shard.number, len(wanted), len(arrived), size, failed)


def _reasons(metas: Iterable[Mapping[str, Any]]) -> Counter[str]:
    return Counter(fetch_reason(meta["error_message"]) for meta in metas)


def _images(output: Storage, path: str) -> dict[str, memoryview]:
    """key -> bytes of the images in a tar that `publish` wrote."""
    buffer = output.view(path)
    view = memoryview(buffer).cast("B")
    found = {}
    try:
        for sample in group(scan(buffer)):
            for extension, member in sample.parts.items():
                if extension not in ("txt", "json"):
                    found[sample.key] = view[member.offset : member.offset + member.size]
    except TarError as error:
        raise SourceError(
            f"{output.where(path)}: {error}: delete it, and the next download fetches its shard again"
        ) from error
    return found
