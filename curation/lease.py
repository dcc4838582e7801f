"""A lease on a run's folder, so that two drivers do not do the same work twice by mistake.

Correctness never depends on it: commits can be repeated and raced, and two drivers without a lease end in the same
bytes. So the lease may be simple: a file that is read, then written, without a lock below it. (What left the input is
removed only under it; a run that has another list of the input at the same moment is what it keeps away.)

The one decision behind this module: no clock is compared with another machine's. An owner on this machine is asked of
the kernel: its process lives or it does not, and both read the same uptime. An owner elsewhere is watched: one that
lives renews its lease every 10 seconds, one that does not for a minute is gone.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import ClassVar

from curation.plan import RunError
from shards.storage import NotFound, Storage, StorageError, Unavailable

NAME = "lease.json"
# Seconds: between two renewals, until a lease that nobody renews is stale, between two looks at another's lease.
RENEW_S = 10.0
STALE_S = 60.0
LOOK_S = 1.0
# Nobody who stops a run waits longer for its lease to be given back, seconds.
GIVE_BACK_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """Who holds a lease. `uptime`: seconds on the machine's own clock at the last renewal, the `renewals`-th."""

    uuid: str
    host: str
    machine: str
    pid: int
    process_started: str
    user: str
    since: str
    renewals: int
    uptime: float

    @classmethod
    def me(cls) -> Owner:
        """This process, as the owner of a new lease."""
        pid = os.getpid()
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user has no name
            user = str(os.getuid())
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(
            uuid.uuid4().hex,
            socket.gethostname(),
            this_machine(),
            pid,
            _process(pid)[1],
            user,
            since,
            0,
            time.monotonic(),
        )

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"

    def lives(self) -> bool:
        """Whether the process that took the lease is there: only its own machine can say."""
        if self.pid == os.getpid() and self.uuid not in Lease.held:
            return False  # a run of this very process that ended without being able to delete its lease
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        state, started = _process(self.pid)
        return state not in ("Z", "X") and started in ("", self.process_started)  # a pid is used again some day


def this_machine() -> str:
    """Names this boot of this machine and the container that processes are counted in: hosts' names are not unique."""
    boot, space = socket.gethostname(), ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{boot} {space}"


def _process(pid: int) -> tuple[str, str]:
    """State and start time (ticks since boot) of a process; empty where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


class Lease:
    """A lease that this process holds, renewed by a thread until `release`. `held`: all of them, by uuid.

    The thread asks a storage of its own, once each time: it neither waits for a store that is away, nor does its
    failing count as the run's.
    """

    held: ClassVar[dict[str, Lease]] = {}

    def __init__(self, output: Storage, say: Say) -> None:
        self._output, self._quick, self._say = output, output.impatient(), say
        self._me = Owner.me()
        self._taken_by: Owner | None = None
        self._over = threading.Event()
        self._write(output)
        self.held[self._me.uuid] = self
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> str | None:
        """One line once another driver has taken over (it met this one suspended, or began in the same second)."""
        if self._taken_by is None:
            return None
        return (
            f"{self._output.uri}: another run took over here ({self._taken_by}): this one ends, nothing is lost by it"
        )

    def release(self) -> None:
        """Gives the folder back, within seconds. A lease that cannot be taken away now is stale within a minute."""
        self._over.set()
        self._thread.join(GIVE_BACK_S)
        self.held.pop(self._me.uuid, None)

    def _write(self, output: Storage) -> None:
        output.write(NAME, json.dumps(asdict(self._me)).encode())

    def _keep(self) -> None:
        renewed, told = time.monotonic(), False
        wait = LOOK_S  # two that began in the same second find out at once
        while not self._over.wait(wait):
            try:
                found = read(self._quick)
                if found is not None and found.uuid != self._me.uuid:
                    self._taken_by = found
                    return
                self._me = replace(self._me, renewals=self._me.renewals + 1, uptime=time.monotonic())
                self._write(self._quick)
                renewed, wait = time.monotonic(), RENEW_S
            except StorageError as error:
                wait = LOOK_S
                if not told and time.monotonic() - renewed > STALE_S / 2:
                    self._say(f"note: the lease cannot be renewed ({error}): another run would not see this one")
                    told = True
        self._give_back()

    def _give_back(self) -> None:
        until = time.monotonic() + GIVE_BACK_S
        while time.monotonic() < until:
            try:
                found = read(self._quick)
                if found is not None and found.uuid == self._me.uuid:
                    self._quick.delete(NAME)
            except Unavailable:
                time.sleep(LOOK_S / 5)
            except StorageError:
                return
            else:
                return


def release_all() -> None:
    """Gives back whatever this process holds: for an end that unwinds no stack."""
    for lease in list(Lease.held.values()):
        lease.release()


@contextmanager
def hold(output: Storage, say: Say) -> Iterator[Lease]:
    """Takes the lease of a folder and gives it back at the end, however the end comes.

    Raises `RunError` with the owner where another run is at work there; `StorageError` where nothing can be written.
    """
    _must_be_free(output, say)
    lease = Lease(output, say)
    try:
        yield lease
    finally:
        lease.release()


def read(output: Storage) -> Owner | None:
    """Who holds the lease; None where nobody does, or where the file is none of ours."""
    try:
        return Owner(**json.loads(output.read(NAME)))
    except (NotFound, ValueError, TypeError):
        return None


def _must_be_free(output: Storage, say: Say) -> None:
    owner = read(output)
    if owner is None:
        return
    if owner.machine == this_machine():
        silent = time.monotonic() - owner.uptime
        if owner.lives() and silent < STALE_S:
            raise _held(output, owner)
        why = f"silent for {silent:.0f} s" if owner.lives() else "dead"
    else:
        say(f"note: {output.uri} is held by {owner}: watching for up to {STALE_S:.0f} s whether it is alive ...")
        until = time.monotonic() + STALE_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            now = read(output)
            if now is None:
                return
            if now != owner:
                raise _held(output, now)
        why = f"silent for {STALE_S:.0f} s"
    say(f"note: {output.uri}: takes over from {owner}, which is {why}")


def _held(output: Storage, owner: Owner) -> RunError:
    return RunError(
        f"{output.uri}: another run is at work here ({owner}): wait for its end, or stop it there with "
        f"`kill {owner.pid}`"
    )
