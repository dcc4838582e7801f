"""Fetches one shard in a worker process: img2dataset downloads, this module bounds it and publishes the result.

The one decision: a shard is fetched into a folder of the worker's own and published as Parquet, tar and `_stats.json`,
in this order, each at once. A shard counts as fetched when its stats stand and the two others have the sizes they name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.fetch.adapters import ADAPTERS
from curation.fetch.catalogue import STATS, Shard
from curation.fetch.lists import read_piece
from curation.fetch.spool import Guarded, KeepBytes, Spool
from curation.profile import Download
from curation.raw import SourceError, fetch_reason, source_json
from curation.unit import describe
from filters.header import read_container
from shards.storage import Storage, StorageError
from shards.tar import build_shard

SUCCESS = "success"
# What img2dataset adds to the columns of the source.
FETCHED = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Fetched:
    """How a shard ended. `reasons`: how many rows were not fetched, by the `<why>` of `fetch:<why>`.

    `error`: why the shard as a whole could not be fetched; `changed`: whether its tar was written anew.
    """

    shard: int
    listed: int = 0
    arrived: int = 0
    bytes: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None
    changed: bool = True


@dataclass(frozen=True)
class Fetcher:
    """What a worker is told. Called with a shard as img2dataset's distributors call their downloader: never raises."""

    download: Download
    max_pixels: int
    lists_uri: str
    output_uri: str
    accept_unreachable: bool = False

    def __call__(self, shard: Shard) -> tuple[bool, Fetched]:
        try:
            fetched = self.fetch(shard)
        except (SourceError, StorageError) as error:
            fetched = Fetched(shard.number, error=str(error))
        except Exception as error:  # noqa: BLE001  a shard that cannot be fetched is told, the others go on
            fetched = Fetched(shard.number, error=f"shard {shard.name}: {describe(error)}")
        return fetched.error is None, fetched

    def fetch(self, shard: Shard) -> Fetched:
        table = read_piece(Storage.open(self.lists_uri), shard.piece, ADAPTERS[self.download.source])
        started = time.time()
        with tempfile.TemporaryDirectory(prefix="winnow-fetch-") as folder:
            keys = [self.key(shard.number, row) for row in range(table.num_rows)]
            spool = self.fetch_rows(Path(folder), shard.number, table.column("url").to_pylist(), keys)
            metas = [spool.metas[key] for key in keys]
            if not self.accept_unreachable and nobody_answered(metas):
                raise SourceError(
                    f"shard {shard.name}: no server of its {len(keys):,} images answered: is the network down? "
                    "Call the download again; if they are gone for good, with --accept-unreachable"
                )
            rows = with_fetched(table, metas)
            images = {key: image for key in keys if (image := spool.image(key)) is not None}
            return publish(Storage.open(self.output_uri), "", shard, rows, images, started)

    def key(self, shard: int, row: int) -> str:
        """img2dataset's key: five digits of the shard, then as many as a shard's rows need."""
        digits = math.ceil(math.log10(self.download.samples_per_shard))
        return f"{10**digits * shard + row:0{digits + 5}d}"

    def fetch_rows(self, folder: Path, shard: int, urls: list[str | None], keys: list[str]) -> Spool:
        """Fetches addresses; the spool knows every one of `keys` afterwards."""
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else every worker asks a server for its newest version
        from img2dataset.downloader import Downloader

        from curation.fetch.opener import Limits, install

        settings = self.download
        install(
            Limits(
                max_bytes=settings.max_bytes,
                max_seconds=settings.max_seconds,
                allow_private_hosts=settings.allow_private_hosts,
                opt_out=settings.opt_out,
                agent=settings.user_agent_token,
            )
        )
        spool = Spool(folder / "images")
        rows = str(folder / "rows.arrow")
        addresses = pa.table({"url": pa.array([url or "" for url in urls], pa.string())})
        with pa.ipc.new_file(rows, addresses.schema) as writer:
            writer.write_table(addresses)
        downloader = Downloader(
            sample_writer_class=lambda *_: spool,
            resizer=self._resizer(),
            thread_count=settings.threads,
            save_caption=False,
            extract_exif=settings.resize is not None,  # re-encoding removes it from the image
            output_folder=str(folder),
            column_list=["url"],
            timeout=settings.timeout_s,
            number_sample_per_shard=settings.samples_per_shard,
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=settings.retries,
            user_agent_token=settings.user_agent_token,
            disallowed_header_directives=None,  # the opener asks: curation/fetch/robots.py
        )
        # It prints tracebacks of single samples and of headers it cannot parse; what they did to a row is told there.
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
            try:
                downloader.download_shard((shard, rows))
            except OSError as error:  # of this folder: what the web does to a sample never comes up here
                spool.error = spool.error or error
        if spool.error is not None:
            raise SourceError(
                f"shard {shard:05d}: {folder.parent} cannot hold its images ({spool.error.strerror}): "
                "make room there, or set TMPDIR to a larger disk"
            )
        # Its keys count from the shard's first row; `keys` are those that the rows have (a retry's are scattered).
        metas = {key: spool.metas.get(self.key(shard, row)) for row, key in enumerate(keys)}
        spool.rename({self.key(shard, row): key for row, key in enumerate(keys)})
        for (key, meta), url in zip(metas.items(), urls, strict=True):
            if meta is None:  # img2dataset failed at it and told nobody but its standard output
                meta = {"status": "failed_to_download", "error_message": _last_line(said.getvalue())}
            if not url:
                meta = {**meta, "status": "failed_to_download", "error_message": "bad url: none given"}
            elif meta["error_message"] is not None:
                meta = {**meta, "error_message": _short(meta["error_message"])}
            spool.metas[key] = {**meta, "key": key, "url": url}
        return spool

    def _resizer(self) -> Any:
        wish = self.download.resize
        if wish is None:
            return KeepBytes()
        from img2dataset.resizer import Resizer

        resizer = Resizer(
            image_size=wish.size,
            resize_mode=wish.mode,
            resize_only_if_bigger=wish.only_if_bigger,
            encode_quality=wish.quality,
            encode_format="jpg",
            skip_reencode=True,  # a JPEG that needs no resizing keeps its bytes
        )
        return Guarded(resizer, self.max_pixels)


def nobody_answered(metas: list[dict[str, Any]]) -> bool:
    """Whether all of a shard's fetches failed before a server said anything: an outage here, most likely, not there.

    Rows that were never asked for do not count, and fewer than 20 others are no evidence.
    """
    reasons = Counter("" if meta["status"] == SUCCESS else fetch_reason(meta["error_message"]) for meta in metas)
    asked = reasons.total() - sum(reasons[why] for why in ("bad_url", "scheme", "blocked_address"))
    return asked >= 20 and sum(reasons[why] for why in ("dns", "connection", "timeout", "too_slow")) == asked


def _short(message: str) -> str:
    """Messages are counted by their text: without the address that urllib quotes of one it cannot make sense of."""
    bad = fetch_reason(message) == "bad_url" and not message.startswith("bad url")
    return "bad url: not an http address" if bad else message[:200]


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return f"img2dataset failed: {lines[-1][:200]}" if lines else "img2dataset failed"


def with_fetched(table: pa.Table, metas: list[dict[str, Any]]) -> pa.Table:
    """The source's rows with the columns of `FETCHED` behind them, in img2dataset's layout."""
    for name in FETCHED.names:
        values = pa.array([meta.get(name) for meta in metas], FETCHED.field(name).type)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table


def publish(
    output: Storage,
    folder: str,
    shard: Shard,
    rows: pa.Table,
    images: Mapping[str, bytes | memoryview],
    started: float,
) -> Fetched:
    """Writes a shard's Parquet, tar and stats into `folder` of the output ('' or one that ends with /).

    rows: the source's columns and `FETCHED`, in the order of the list; images: bytes by key of those that arrived.
    """
    base = f"{folder}{shard.name}"
    records = [record for record in rows.to_pylist() if record["key"] in images]
    tar = build_shard([(record["key"], _members(record, images[record["key"]])) for record in records])
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    sidecar = sink.getvalue()
    messages = Counter(
        message or status
        for status, message in zip(
            rows.column("status").to_pylist(), rows.column("error_message").to_pylist(), strict=True
        )
    )
    statuses = Counter(rows.column("status").to_pylist())
    failed = Counter[str]()
    for message, count in messages.items():
        if message != SUCCESS:
            failed[fetch_reason(message)] += count
    if len(records) != statuses[SUCCESS]:
        raise SourceError(f"shard {shard.name}: {statuses[SUCCESS]} rows say they arrived, {len(records)} images did")
    stats = {
        "count": rows.num_rows,
        "successes": len(records),
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "duration": round(time.time() - started, 3),
        "start_time": started,
        "end_time": time.time(),
        "status_dict": dict(messages.most_common()),
        "reasons": dict(sorted(failed.items())),
        "list": [shard.piece.path, shard.piece.start, shard.piece.stop],
        "tar": {"bytes": tar.size, "sha256": tar.sha256},
        "parquet": {"bytes": sidecar.size, "sha256": hashlib.sha256(sidecar).hexdigest()},
    }
    output.write(f"{base}.parquet", sidecar, durable=True)
    output.write(f"{base}.tar", tar.buffers, durable=True)
    output.write(f"{base}{STATS}", json.dumps(stats, ensure_ascii=False, indent=1).encode(), durable=True)
    size = sum(len(image) for image in images.values())
    return Fetched(shard.number, rows.num_rows, len(records), size, dict(failed))


def _members(record: dict[str, Any], image: bytes | memoryview) -> list[tuple[str, bytes | memoryview]]:
    """jpg|png|webp|img, txt where there is a caption, json: what img2dataset writes, by the image's real format."""
    kind, _ = read_container(memoryview(image))
    members: list[tuple[str, bytes | memoryview]] = [(kind or "img", image)]
    if record["caption"] is not None:
        members.append(("txt", record["caption"].encode(errors="replace")))
    members.append(("json", source_json(record, ()).encode()))
    return members
