"""Drivers as processes of their own, that tests kill: each has its own session, and only what it started is reaped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

# Waiting for an event on a busy machine; a test that meets it has failed.
PATIENCE_S = 180.0


class Driver:
    """A process (by default `python -m curation ...`) in a session of its own; its stderr goes to a file."""

    def __init__(self, log: Path, arguments: Sequence[str | Path], code: Sequence[str] = ("-m", "curation")) -> None:
        self._log = log
        self._found: set[psutil.Process] = set()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *code, *map(str, arguments)],
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            )
        self.pid = self._process.pid

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, happened: Callable[[], object], what: str) -> None:
        """Waits for an event of the run; the driver has to live until then."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.alive, f"the driver ended before {what}:\n{self.said}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.said}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the driver alone, and remembers whom it had started."""
        self.remember()
        self._process.send_signal(number)

    def end(self) -> int:
        """Waits for the end; the exit status, negative for a signal."""
        return self._process.wait(PATIENCE_S)

    def reap(self) -> None:
        """Ends the driver and what it started. Ray's processes go by themselves soon after their driver, some in 30 s."""
        if self.alive:
            self.remember()
            self._process.kill()
        self._process.wait(PATIENCE_S)
        _, left = psutil.wait_procs(list(self._found), timeout=2)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil compares the start time: never another process with the same id

    def left(self) -> list[str]:
        """What it had started and what lives on, in 20 seconds even, by command line."""
        _, living = psutil.wait_procs(list(self._found), timeout=20)
        return [" ".join(process.cmdline()) for process in living]

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes of its pool that are there now."""
        self.remember()
        return [process for process in self._found if process.is_running() and "spawn_main" in str(process.cmdline())]

    def remember(self) -> None:
        """Whom it has started so far goes with it, also where it ends before `reap`."""
        with suppress(psutil.NoSuchProcess):
            self._found.update(psutil.Process(self.pid).children(recursive=True))


@contextmanager
def driver(log: Path, *arguments: str | Path, code: Sequence[str] = ("-m", "curation")) -> Iterator[Driver]:
    """A `Driver` that is gone, with all it started, at the end."""
    started = Driver(log, arguments, code)
    try:
        yield started
    finally:
        started.reap()


def arrivals(gate: Path) -> list[dict[str, Any]]:
    """Who waits, or waited, at the gate (`plugins.Gate`): pid and node, in the order of their coming."""
    paths = sorted(gate.glob("arrived-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return [json.loads(path.read_text()) for path in paths]


def await_arrivals(gate: Path, count: int, driver: Driver | None = None) -> list[dict[str, Any]]:
    """Waits until so many have come to the gate."""
    deadline = time.monotonic() + PATIENCE_S
    while len(found := arrivals(gate)) < count:
        said = driver.said if driver else ""
        assert driver is None or driver.alive, said
        assert time.monotonic() < deadline, f"{len(found)} of {count} came to the gate\n{said}"
        time.sleep(0.01)
    return found
