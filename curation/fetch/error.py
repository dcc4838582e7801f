"""Why a fetch failed, in words that can be counted.

The one decision: a text is short, lower-case, the same for every failure of its kind, and never quotes the URL or what
a server said. Millions of rows then share a few dozen messages, and no server chooses the reason it is filed under.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from collections.abc import Iterator
from urllib.error import URLError


class FetchError(URLError):
    """A fetch that failed. `curation.raw.fetch_reason` knows the first words of every text."""

    def __str__(self) -> str:
        return str(self.reason)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Whatever goes wrong on the wire inside becomes a FetchError; one that is raised inside stays as it is."""
    try:
        yield
    except FetchError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise failure(error) from error


def failure(error: OSError | http.client.HTTPException) -> FetchError:
    """What went wrong on the wire. Time limits are the caller's to tell apart: here they are only `timed out`."""
    if isinstance(error, http.client.IncompleteRead):
        return FetchError("cut off: the body ends early")
    if isinstance(error, http.client.RemoteDisconnected):
        return FetchError("connection closed without an answer")
    if isinstance(error, http.client.HTTPException):
        return FetchError("connection failed: not an http answer")
    if isinstance(error, ssl.SSLCertVerificationError):
        # "Hostname mismatch, certificate is not valid for 'host'" names the host behind the comma.
        why = (error.verify_message or "not valid").partition(",")[0].lower()
        return FetchError(f"tls: certificate refused: {why}")
    if isinstance(error, ssl.SSLError):
        return FetchError(f"tls: {(error.reason or 'failed').lower().replace('_', ' ')}")
    if isinstance(error, TimeoutError):
        return FetchError("timed out")
    if isinstance(error, ConnectionRefusedError):
        return FetchError("connection refused")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return FetchError("connection reset")
    return FetchError(f"connection failed: {os.strerror(error.errno).lower() if error.errno else 'unknown'}")
