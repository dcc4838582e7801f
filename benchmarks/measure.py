"""What a command costs: seconds of all its processes, also of those that outlive it, and their memory at its highest.

The one decision: a command is charged for everything that it starts. Ray's workers are nobody's children for long, so
where the kernel lets us the command runs in a control group of its own, which counts them all; elsewhere all that
descend from it are asked ten times a second.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_EVERY_S = 0.1
# Processes that a command leaves behind get so long to end by themselves.
_GRACE_S = 10.0


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, CPU seconds of all processes, and the highest sum of their proportional memory (bytes).

    `output`: what the command printed.
    """

    wall: float
    cpu: float
    memory: int
    output: str


class BenchmarkError(Exception):
    """A side of a comparison did not run: one line, with the last that it said."""


def measure(command: Sequence[str], *, memory: bool = False, env: Mapping[str, str] | None = None) -> Cost:
    """Runs a command to its end. memory: also looks at its memory, which costs some CPU. Raises `BenchmarkError`."""
    group = _Group.make()
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        start_new_session=True,
        preexec_fn=None if group is None else group.enter,
    )
    watch = _Watch(process.pid, group, memory)
    try:
        output, errors = process.communicate()
        wall = time.perf_counter() - began
    finally:
        watch.end()
    if process.returncode:
        said = (errors.strip().splitlines() or output.strip().splitlines() or [""])[-1]
        raise BenchmarkError(f"{' '.join(command)[:200]}: exit status {process.returncode}: {said}")
    return Cost(wall, watch.cpu, watch.memory, output)


class _Group:
    """A control group of the first or second kind."""

    def __init__(self, folder: Path, usage: Callable[[], float]) -> None:
        self._folder, self.usage = folder, usage

    @classmethod
    def make(cls) -> _Group | None:
        """None where the kernel, or the rights of this user, have none."""
        name = f"winnow-benchmark-{os.getpid()}-{time.monotonic_ns()}"
        for root, file in ((Path("/sys/fs/cgroup"), "cpu.stat"), (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage")):
            folder = root / name
            with suppress(OSError):
                if not (root / "cgroup.procs").exists():
                    continue
                folder.mkdir()
                if (folder / file).exists():
                    return cls(folder, lambda path=folder / file: _usage(path))  # type: ignore[misc]
                folder.rmdir()
        return None

    def enter(self) -> None:
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> list[int]:
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()


def _usage(path: Path) -> float:
    """Seconds, of `usage_usec 123` or of nanoseconds alone."""
    text = path.read_text()
    return int(text.split()[1]) / 1e6 if text.startswith("usage_usec") else int(text) / 1e9


def counted_by() -> str:
    """How CPU seconds are counted on this machine."""
    group = _Group.make()
    if group is None:
        return "asking all processes ten times a second"
    group.remove()
    return "a control group of the kernel"


class _Watch:
    """Follows a command and what it starts, until all of it has ended."""

    def __init__(self, pid: int, group: _Group | None, memory: bool) -> None:
        self._group, self._look_at_memory = group, memory
        self._known: dict[int, psutil.Process] = {}
        self._seconds: dict[int, float] = {}
        with suppress(psutil.NoSuchProcess):
            self._known[pid] = psutil.Process(pid)
        self.memory = 0
        self.cpu = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        if self._group is not None and not self._look_at_memory:
            return
        if self._group is not None:
            for pid in self._group.pids():
                if pid not in self._known:
                    with suppress(psutil.NoSuchProcess):
                        self._known[pid] = psutil.Process(pid)
        else:
            for process in list(self._known.values()):
                with suppress(psutil.NoSuchProcess):
                    self._known.update({child.pid: child for child in process.children(recursive=True)})
        total = 0
        for pid, process in list(self._known.items()):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._seconds[pid] = times.user + times.system
                if self._look_at_memory:
                    total += process.memory_full_info().pss
        self.memory = max(self.memory, total)

    def end(self) -> None:
        """Waits until nothing of it lives, ends what does not end, and adds up."""
        deadline = time.monotonic() + _GRACE_S
        while self._living() and time.monotonic() < deadline:
            time.sleep(_EVERY_S)
        self._over.set()
        self._thread.join()
        self._look()
        for pid in self._living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._living():
            time.sleep(0.01)
        self.cpu = sum(self._seconds.values()) if self._group is None else self._group.usage()
        if self._group is not None:
            self._group.remove()

    def _living(self) -> list[int]:
        if self._group is not None:
            return self._group.pids()
        return [pid for pid, process in list(self._known.items()) if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Ratio:
    """One side's figure over the other's, pair by pair: the middle one, the least and the most."""

    pairs: tuple[float, ...]

    @property
    def middle(self) -> float:
        return statistics.median(self.pairs)

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({min(self.pairs):.2f} to {max(self.pairs):.2f}, {len(self.pairs)} pairs)"


def say(line: str = "") -> None:
    """A line of a benchmark's table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
