"""SIGTERM (`ray job stop`, a spot machine's notice, a shutdown) ends a run as Ctrl-C does: in order, and resumable."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. No `Exception`: nothing on the way up may take it for an error of its own."""


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """Within it the first SIGTERM raises `Terminated` in the main thread; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def handler_kept() -> Iterator[None]:
    """Keeps `terminable` at work around code that puts up a handler of its own and leaves by `SystemExit`: Ray does."""
    if signal.getsignal(signal.SIGTERM) is not _raise or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as error:
        raise Terminated from error
    finally:
        signal.signal(signal.SIGTERM, _raise)
