"""Serves a demo web on loopback, with all its faults.

The decision behind this module: one thread with an event loop answers everybody, so that an answer which takes for ever
costs the others nothing, and the server ends with the process that started it. Faults are the server's own doing, not a
chance of timing: an answer that is to come too late never comes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from demo.site import Reply, read_site

HOST = "127.0.0.1"
PORT = 18973  # stands in the URLs of the list: a fixed one, so that two checkouts make the same bytes
OVERSIZED = 1 << 30  # bytes that an oversized answer announces
_LONGEST = 60.0  # seconds after which any connection is closed, whatever the client does
_PAUSE = 0.2  # seconds between the pieces of a slow answer
_HEAD = 16_384  # bytes of a request's head
_ZEROS = bytes(1 << 16)


def listen(port: int) -> socket.socket:
    """A listening socket on loopback; port 0: one that the kernel gives. Raises OSError where it is taken."""
    return socket.create_server((HOST, port), backlog=512)


@contextmanager
def serving(folder: Path, listener: socket.socket) -> Iterator[None]:
    """Serves the site in `folder` from a thread of its own, and closes the listener at the end. Raises `SiteError`."""
    with listener:
        site = read_site(folder)
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def work() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            server = await _start(site, listener)
            await stop.wait()
            server.close()  # and no wait for those who are still being answered: they are cancelled

        thread = threading.Thread(target=_run, args=(work, started), name="demo web", daemon=True)
        thread.start()
        loop, stop = started.result()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def serve_for_ever(folder: Path, listener: socket.socket) -> None:
    """Serves until the process is interrupted."""

    async def work() -> None:
        async with await _start(site, listener) as server:
            await server.serve_forever()

    with listener:
        site = read_site(folder)
        asyncio.run(work())


def _run(work: Callable[[], Coroutine[Any, Any, None]], started: Future[Any]) -> None:
    try:
        asyncio.run(work())  # cancels at its end whoever is still being answered
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _start(site: dict[str, Reply], listener: socket.socket) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LONGEST):
                await _answer(site, reader, writer)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # The client went away or speaks no HTTP, or the server ends (asyncio 3.11 complains of cancelled tasks).
            writer.transport.abort()
        finally:
            writer.close()

    return await asyncio.start_server(connected, sock=listener, limit=_HEAD)


async def _answer(site: dict[str, Reply], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    method = await reader.readexactly(4)
    if method != b"GET ":
        # TLS mostly, or another method: said in plain HTTP, as web servers do.
        await reader.read(_HEAD)
        writer.write(_head(400, (), 0))
        return
    request = await reader.readuntil(b"\r\n\r\n")
    target = request.partition(b" ")[0].decode("latin-1")
    reply = site.get(target) or Reply(target, b"There is no such page here.\n", 404, (("Content-Type", "text/plain"),))
    await _MANNERS[reply.manner](reply, reader, writer)


def _head(status: int, headers: tuple[tuple[str, str], ...], length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


async def _send(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, reply.headers, len(reply.body)))
    writer.write(reply.body)


async def _pieces(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three pieces, with pauses that a patient client does not mind."""
    writer.write(_head(reply.status, reply.headers, len(reply.body)))
    step = -(-len(reply.body) // 3) or 1
    for start in range(0, len(reply.body), step):
        await asyncio.sleep(_PAUSE)
        writer.write(reply.body[start : start + step])


async def _chunked(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, (*reply.headers, ("Transfer-Encoding", "chunked")), None))
    step = 8_000
    for start in range(0, len(reply.body), step):
        writer.write(_chunk(reply.body[start : start + step]))
        await writer.drain()
    writer.write(_chunk(b""))


def _chunk(data: bytes | memoryview) -> bytes:
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n"))


async def _unsized(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, reply.headers, None))
    writer.write(reply.body)


async def _hold(_: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client has had enough


async def _drip(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, reply.headers, len(reply.body)))
    for start in range(len(reply.body)):
        writer.write(reply.body[start : start + 1])
        await writer.drain()
        await asyncio.sleep(_PAUSE)


async def _cut(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, reply.headers, len(reply.body)))
    writer.write(reply.body[: len(reply.body) // 2])


async def _reset(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
    writer.transport.abort()


async def _oversized(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, reply.headers, OVERSIZED))
    writer.write(reply.body)
    for _chunk_number in range((OVERSIZED - len(reply.body)) // len(_ZEROS)):
        writer.write(_ZEROS)
        await writer.drain()


async def _endless(reply: Reply, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(reply.status, (*reply.headers, ("Transfer-Encoding", "chunked")), None))
    writer.write(_chunk(reply.body))
    zeros = _chunk(_ZEROS)
    while True:
        writer.write(zeros)
        await writer.drain()


_MANNERS: dict[str, Callable[[Reply, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]] = {
    "send": _send,
    "pieces": _pieces,
    "chunked": _chunked,
    "unsized": _unsized,
    "hold": _hold,
    "drip": _drip,
    "cut": _cut,
    "reset": _reset,
    "oversized": _oversized,
    "endless": _endless,
}
