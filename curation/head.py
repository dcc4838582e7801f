"""Ray's head as the driver meets it: whether an address is Ray's at all, whether the head lives, what it has to say.

The one decision behind this module: the driver learns of a lost head before Ray's C++ core does. The core ends the
process without a word to anyone once it has been without the head for a minute, so a thread knocks at the head's port
and ends the run in order, with one line and without its lease, while there is time.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds: until an address must have answered, between two knocks at the head's port, until a knock has failed.
ANSWER_S = 10.0
KNOCK_S, KNOCK_TIMEOUT_S = 2.0, 2.0
# Ray's own setting and its default, seconds without the head; the run is ended after this share of them: a head that
# comes back (a pod that is started again, its state in a Redis) must be given time, and giving the lease back takes it.
CORE_VARIABLE, CORE_S, SHARE = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0, 2 / 3
# The begin of HTTP/2 (RFC 9113, 3.4) with empty settings: all of Ray's own ports answer with a SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4
# A knock that failed for want of something on this side says nothing of the head.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)


def not_ray(address: str) -> str | None:
    """One line where nothing, or something that is not Ray, answers at `address`; Ray itself tries that for minutes.

    Only host:port and ray://host:port are asked; what Ray looks up by itself ("local", "auto") is left to it.
    """
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme != "ray":
        return f"no Ray at {address!r}: that is where jobs are submitted; Ray itself is at HOST:PORT, port usually 6379"
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdigit():
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") or _speaks_http2(connection):
                return None
    except (OSError, OverflowError, UnicodeError) as error:
        return f"no Ray at {address!r} ({error}): check --address, or leave it out"
    usual = 10001 if scheme == "ray" else 6379
    return f"no Ray at {address!r}: something else answers there; Ray's own port is usually {usual}"


def _speaks_http2(connection: socket.socket) -> bool:
    until = time.monotonic() + ANSWER_S
    answer = b""
    try:
        connection.sendall(_PREFACE)
        while len(answer) < 4 and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            piece = connection.recv(4 - len(answer))
            if not piece:
                break
            answer += piece
    except OSError:  # hung up, or silent
        return False
    return len(answer) == 4 and answer[3] == _SETTINGS


@contextmanager
def watched(address: str, log: str, at_loss: Callable[[], None]) -> Iterator[None]:
    """Within it the loss of the head at `address` ends this process with status 1: one line, `at_loss`, nothing else.

    log: the file that Ray's core writes to, for the line. Leave it before Ray is shut down.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, log, at_loss, over), name="ray head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def patience_s() -> float:
    """Seconds without the head until it is taken for lost."""
    try:
        core_s = float(os.environ.get(CORE_VARIABLE, ""))
    except ValueError:
        core_s = CORE_S
    return SHARE * core_s


def _watch(address: str, log: str, at_loss: Callable[[], None], over: threading.Event) -> None:
    limit, silent = patience_s(), 0.0
    while not over.wait(KNOCK_S):
        began = time.monotonic()
        if _answers(address):
            silent = 0.0
            continue
        # Not by the clock alone: a process that was suspended has not knocked meanwhile.
        silent += KNOCK_S + min(time.monotonic() - began, KNOCK_TIMEOUT_S)
        if silent >= limit and not over.is_set():
            _end(address, log, at_loss)


def _answers(address: str) -> bool:
    """Whether the port takes connections: the kernel answers for a head that is only busy."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S).close()
    except OSError as error:
        return error.errno in _OURS
    return True


def _end(address: str, log: str, at_loss: Callable[[], None]) -> None:
    try:
        below_bar = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(
            f"{below_bar}error: Ray's head at {address} is gone; what is committed stays: "
            f"the same command goes on from there (Ray's own log: {log})\n"
        )
        sys.stderr.flush()
        at_loss()
    finally:
        os._exit(1)  # Ray's threads would wait for the head


@contextmanager
def messages_in_log() -> Iterator[None]:
    """Sends what Ray prints in a driver (a worker died, a node went) to file descriptor 2, where its core writes too.

    What became of it is told by the run itself. Ray has no setting for that; a Ray that has moved the function prints
    as before.
    """
    from ray._private import worker

    printed: Any = getattr(worker, "print_to_stdstream", None)
    if printed is None:
        yield
        return

    def write(data: dict[str, Any], *_: Any, **__: Any) -> None:
        os.write(2, ("\n".join(map(str, data.get("lines", ()))) + "\n").encode(errors="backslashreplace"))

    worker.print_to_stdstream = write
    try:
        yield
    finally:
        worker.print_to_stdstream = printed
