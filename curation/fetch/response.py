"""An HTTP answer whose every byte is counted and timed.

The one decision: each wait on the socket is given what is left of the fetch's time. A server that drips its headers,
its body or its TLS records is left on the spot by the thread that reads. There are no timers, and no second thread that
might shut down a socket whose number is in use again.
"""

from __future__ import annotations

import http.client
import io
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from http import HTTPStatus

from curation.fetch.error import FetchError, told_plainly
from curation.fetch.url import Url

_PIECE = 1 << 16
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # zlib finds out which


class Budget:
    """The time of one fetch, name look-up and redirects included. Seconds; `step` bounds each single wait."""

    def __init__(self, total: float, step: float | None) -> None:
        self.total = total
        self.step = step if step is not None else total
        self.ends = time.monotonic() + total

    def seconds(self) -> float:
        """How long the next wait may take. Raises FetchError when no time is left."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        return min(self.step, left)

    def ran_out(self, waiting_for: str) -> FetchError:
        """What it means that a wait of `seconds()` was in vain."""
        if time.monotonic() >= self.ends - 0.01:  # a wait may end a little early
            return self._too_slow()
        return FetchError(f"timed out {waiting_for}")

    def _too_slow(self) -> FetchError:
        return FetchError(f"too slow: over {self.total:g} s in total")


class Wire:
    """A connected socket as http.client wants one. It owns nothing: whoever opened the socket closes it."""

    def __init__(self, sock: socket.socket, budget: Budget, max_bytes: int) -> None:
        self._sock = sock
        self._budget = budget
        self._max_bytes = max_bytes

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._budget.seconds())
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise self._budget.ran_out("sending") from None

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._sock, self._budget, self._max_bytes), _PIECE)

    def close(self) -> None:
        pass  # http.client closes it as soon as it has the headers, and would read the body from what is left


class _Received(io.RawIOBase):
    """What comes in. Bytes are counted here too, so that nothing in a chunked body's framing gets round the limit."""

    def __init__(self, sock: socket.socket, budget: Budget, max_bytes: int) -> None:
        self._sock = sock
        self._budget = budget
        self._max_bytes = max_bytes
        self._left = 2 * max_bytes + (1 << 20)  # headers and framing are not the body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._sock.settimeout(self._budget.seconds())
        try:
            count = self._sock.recv_into(buffer)
        except TimeoutError:
            raise self._budget.ran_out("reading") from None
        self._left -= count
        if self._left < 0:
            raise too_large(self._max_bytes)
        return count


def too_large(max_bytes: int) -> FetchError:
    return FetchError(f"too large: over {max_bytes} bytes")


class Response(io.BufferedIOBase):
    """What urlopen gives back: a file of the body, with `url`, `status`, `headers` (get_all).

    The body is read when asked for, so an answer that opts out by its headers is never downloaded. Reading raises
    FetchError `too large`, `too slow`, `timed out`, `cut off`, `encoding`, `connection` or `tls`, and then closes.
    """

    def __init__(self, url: Url, answer: http.client.HTTPResponse, sock: socket.socket, max_bytes: int) -> None:
        self.url = str(url)
        self.headers = answer.headers
        self.status = self.code = answer.status
        self.reason = self.msg = phrase(answer.status)
        self.version = answer.version
        self._answer = answer
        self._sock = sock
        self._max_bytes = max_bytes
        self._pieces = self._limited()
        self._rest = memoryview(b"")  # of the current piece

    def geturl(self) -> str:
        return self.url

    def info(self) -> http.client.HTTPMessage:
        return self.headers

    def getcode(self) -> int:
        return self.status

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if self.closed:
            raise ValueError("read of a closed response")
        wanted = sys.maxsize if size is None or size < 0 else size
        body = io.BytesIO()  # grows in place and gives its buffer away: one copy of a large body, not two
        try:
            while wanted and (self._rest or self._next()):
                taken = body.write(self._rest[:wanted])
                self._rest = self._rest[taken:]
                wanted -= taken
        except BaseException:
            self.close()
            raise
        return body.getvalue()

    def _next(self) -> bool:
        self._rest = memoryview(next(self._pieces, b""))
        return bool(self._rest)

    def read1(self, size: int = -1) -> bytes:
        return self.read(size if 0 <= size < _PIECE else _PIECE)

    def close(self) -> None:
        if not self.closed:
            self._hang_up()
            super().close()

    def _hang_up(self) -> None:
        self._answer.close()
        self._sock.close()

    def _limited(self) -> Iterator[bytes]:
        """The decoded body in pieces, none of them empty."""
        if (self._answer.length or 0) > self._max_bytes:
            raise too_large(self._max_bytes)
        transfer = self.headers.get("transfer-encoding", "identity").strip().lower()
        if not self._answer.chunked and transfer != "identity":  # http.client would take the framing for the body
            raise FetchError("encoding: unknown transfer-encoding")
        if self.status == HTTPStatus.PARTIAL_CONTENT:
            raise FetchError("cut off: the server sent a part, unasked")
        coding = self.headers.get("content-encoding", "").strip().lower()
        if coding in ("br", "zstd", "compress", "x-compress") or "," in coding:
            raise FetchError("encoding: not asked for, not decoded")
        pieces = self._received()
        left = self._max_bytes
        # Any other word there (utf-8, none, binary) is a mistake that browsers ignore.
        for piece in _inflated(pieces) if coding in ("gzip", "x-gzip", "deflate") else pieces:
            left -= len(piece)
            if left < 0:
                raise too_large(self._max_bytes)
            yield piece
        self._hang_up()

    def _received(self) -> Iterator[bytes]:
        while piece := self._read_piece():
            yield piece
        if self._answer.length:
            raise FetchError("cut off: the body ends early")

    def _read_piece(self) -> bytes:
        try:
            with told_plainly():
                return self._answer.read(_PIECE)
        except ValueError:  # a chunk of negative length
            raise FetchError("cut off: broken chunks") from None


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Compressed pieces decoded, at most 64 KiB at a time: a bomb meets the byte limit before it unfolds."""
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    begun = False
    try:
        for data in pieces:
            begun = True
            while data:
                if inflate.eof:
                    if not data.startswith(b"\x1f\x8b"):
                        return  # padding, which browsers ignore as well
                    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)  # another gzip member
                if piece := inflate.decompress(data, _PIECE):
                    yield piece
                data = inflate.unconsumed_tail or inflate.unused_data
        if piece := inflate.flush():
            yield piece
    except zlib.error:
        raise FetchError("encoding: the body is not compressed as it says") from None
    if begun and not inflate.eof:
        raise FetchError("cut off: the compressed body ends early")


def phrase(status: int) -> str:
    """The standard's words for a status; a server's own would make every one a message of its own."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
