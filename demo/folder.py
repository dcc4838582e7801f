"""The folder that a command of the demo writes to: probed before the work, and swept of what killed builds left.

The decision behind this module: a minute of drawing or training is not to end in a folder that nobody may write to, so
a real file is written there first; permission bits alone say little (root, read-only mounts, /proc).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STALE = 3600.0  # seconds without a new file after which a working folder of an unknown process counts as dead


class FolderError(ValueError):
    """Nothing can be written there; one line for the user."""


def prepare(folder: Path) -> None:
    """Makes the folder and writes a file to it, which is removed again; raises `FolderError`."""
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            below = "" if part == folder else f"{folder} cannot be made: "
            raise FolderError(f"{below}{part} is a file, not a folder: remove it, or name another folder with --out")
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"probe")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(explain(error, folder)) from error


def explain(error: OSError, folder: Path) -> str:
    """One line for a write that failed in `folder`."""
    why = (error.strerror or str(error)).lower()
    return f"{folder} cannot be written to ({why}): name another folder with --out"


@contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Holds the folder against other processes of this machine; calls `wait` if that takes patience.

    The lock dies with its process, so there is none to be broken by hand.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work_folder(folder: Path, what: str) -> Path:
    """A new hidden folder in `folder` to work in, whose name says which process it belongs to."""
    work = folder / f".{what}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    return work


@contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """A working folder that takes the place of `folder` where the block ends well, and else leaves nothing behind."""
    work = work_folder(folder.parent, folder.name)
    try:
        yield work
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(folder: Path, what: str) -> list[Path]:
    """Removes the working folders of dead builds: their process is gone, or nothing happened in them for an hour.

    A folder of another machine, or one whose process number is in use again, is judged by its age alone.
    """
    swept = []
    for work in sorted(folder.glob(f".{what}-*")):
        if work.is_dir() and not work.is_symlink() and (_is_orphan(work, what) or _age(work) > _STALE):
            shutil.rmtree(work, ignore_errors=True)
            swept.append(work)
    return swept


def _is_orphan(work: Path, what: str) -> bool:
    """Whether the process that made the folder ran on this machine and is gone."""
    host, _, rest = work.name.removeprefix(f".{what}-").rpartition("-")[0].rpartition("-")
    if host != _host() or not rest.isdecimal():
        return False
    try:
        os.kill(int(rest), 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _age(work: Path) -> float:
    """Seconds since anything in the folder changed."""
    newest = 0.0
    for path in (work, *work.rglob("*")):
        try:
            newest = max(newest, path.stat().st_mtime)
        except OSError:  # another build is moving its files just now
            return 0.0
    return time.time() - newest


def _host() -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname()) or "unknown"
