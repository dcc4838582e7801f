"""Opens object stores (`s3://`, `gs://`) and asks them again while they fail.

The one decision behind this module: a store that answers badly is waited for, a store that never answered is not. The
AWS library itself tries three times within about two seconds; what still fails is repeated here as a whole, with
growing random pauses, until the patience is spent. Every repeated operation gives the same result as one of it.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from shards.errors import StorageError, Unavailable

_log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds of failures in a row before an operation is given up; an environment variable, as it belongs to a machine.
PATIENCE_VARIABLE = "WINNOW_STORE_PATIENCE_S"
PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
# The AWS library's own: 1 s to connect and 3 s without a byte are too short for a store under load.
_CONNECT_S, _SILENCE_S = 5.0, 30.0
_ATTEMPTS = 3
# Where an answer is of use at once or not at all: a single attempt, seconds to connect and without a byte.
_QUICK_S = 3.0
# Objects below this go up in one PUT; larger ones in parts of 10 MiB that appear at once, when all are there.
ONE_PUT_BYTES = 5 << 20


@dataclass(frozen=True)
class Opened:
    """File systems of a bucket: `plain` for everything, `parts` for uploads of `ONE_PUT_BYTES` and more."""

    plain: fs.FileSystem
    parts: fs.FileSystem


def shown(uri: str) -> str:
    """An address for messages: without what may be a password or a signature in it."""
    scheme, separator, location = uri.partition("://")
    if not separator:
        return uri
    return f"{scheme}://..." if _secretive(location) else uri


def _secretive(location: str) -> bool:
    # A password may itself hold a slash, so a colon in the first part is enough; a bucket's name has none.
    first = location.partition("/")[0]
    return "@" in first or ":" in first or re.search(r"[?&#;][\w.-]+=", location) is not None


def root_of(uri: str) -> str:
    """bucket/folder of an address (s3:// or gs://); `StorageError` for what is none. Nothing is sent."""
    scheme, _, location = uri.partition("://")
    scheme = scheme.lower()
    if _secretive(location):
        raise StorageError(
            f"{scheme}:// with credentials or options in it: put them into the environment instead, and name "
            f"{scheme}://bucket/folder alone"
        )
    bucket, _, folder = location.rstrip("/").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
        raise StorageError(f"{uri}: {bucket!r} is no bucket's name: write {scheme}://bucket/folder")
    return f"{bucket}/{folder}".rstrip("/")


def open_store(uri: str, quick: bool = False) -> Opened:
    """The store of an address. Asks AWS for the bucket's region where no endpoint is set; else nothing is sent.

    quick: a request that is not answered within seconds has failed.
    """
    scheme, bucket = uri.partition("://")[0], root_of(uri).partition("/")[0]
    if scheme == "s3":
        return _open_s3(bucket, quick)
    # Nobody waits a quarter of an hour for credentials.
    limit = _QUICK_S if quick else 60
    filesystem = fs.FileSystem.from_uri(f"gs://{bucket}?retry_limit_seconds={limit:g}")[0]
    return Opened(filesystem, filesystem)


def _open_s3(bucket: str, quick: bool) -> Opened:
    options: dict[str, object] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise StorageError("AWS_ENDPOINT_URL is no address like https://host:port: mend it in the environment")
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
        if region:
            options["region"] = region
    else:
        options["region"] = _region(bucket, region)
    options |= {
        "connect_timeout": _QUICK_S if quick else _CONNECT_S,
        # Linux: without a byte for so long, whatever Arrow's documentation says
        "request_timeout": _QUICK_S if quick else _SILENCE_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=1 if quick else _ATTEMPTS),
    }
    # With a delayed open small objects need one request instead of three. A large one must not have it: where its
    # multi-part upload cannot begin, the stream's destructor publishes an empty object (pyarrow 26).
    return Opened(
        fs.S3FileSystem(allow_delayed_open=True, **options), fs.S3FileSystem(allow_delayed_open=False, **options)
    )


@functools.lru_cache(maxsize=64)
def _region(bucket: str, usual: str | None) -> str:
    """The bucket's region as AWS tells everybody; where AWS cannot be asked (a closed network), the usual one."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError as error:
        if usual is None or "NETWORK_CONNECTION" not in str(error):
            raise
        return usual


class Patience:
    """Repeats what failed for a reason that passes: throttling, errors of the server, lost connections.

    Once spent, operations are tried a single time until one succeeds: a store that stays broken ends a run soon.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = _patience_s() if seconds is None else seconds
        self._spent = False

    def ask(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """The result of `work`, called again while it raises `Unavailable`. seconds: another patience, this once."""
        limit = self.seconds if seconds is None else seconds
        until = time.monotonic() + (0.0 if self._spent else limit)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                result = work()
            except Unavailable as error:
                wait = pause * random.uniform(0.5, 1.0)
                if time.monotonic() + wait > until:
                    self._spent = self._spent or limit > 0
                    raise
                _log.warning("%s; trying again in %.0f s", error, wait)
                time.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._spent = False
                return result


def _patience_s() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(text) if text else PATIENCE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise StorageError(f"{PATIENCE_VARIABLE}={text!r} is no number of seconds: mend it in the environment")
    return seconds


class RangedFile:
    """An object as Python's readers want a file: each read is one ranged request, repeated while the store fails."""

    def __init__(self, size: int, read_at: Callable[[int, int], bytes]) -> None:
        """`read_at` gives the bytes [start, stop), and raises where it cannot."""
        self._size, self._read_at, self._position = size, read_at, 0
        self.closed = False
        self._lock = threading.Lock()

    def read(self, count: int | None = None) -> bytes:
        with self._lock:
            start = self._position
            stop = self._size if count is None or count < 0 else min(start + count, self._size)
            self._position = max(start, stop)
        return self._read_at(start, stop) if stop > start else b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
