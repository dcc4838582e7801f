"""Brings the demo's pairs: builds the web, serves it on loopback, and has `python -m curation download` fetch it.

The decision behind this module: the port stands in the list's addresses, so it is taken before anything is built. Where
the usual one is in use the web is built for another, and never fetched from a server that happens to be there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.folder import alone, prepare
from demo.server import HOST, PORT, listen, serving
from demo.train_clip import Progress
from demo.web import WebError, build_web, is_built, read_recipe

Say = Callable[[str], None]


def run_command(*arguments: str) -> int:
    """The exit status of a command of this project; its output is the caller's."""
    sys.stdout.flush()
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted as well, and ends in good order
        raise


def ensure_pairs(
    out: Path,
    samples: int,
    seed: int,
    download: Callable[[bool], int],
    say: Say,
    progress: Progress | None = None,
    stale: tuple[Path, ...] = (),
) -> int:
    """The exit status of `download`, which is to fetch `out`/urls into `out`/web while the web is served; 0 if it has.

    download: True asks for another try of what failed; that is due where an image did not arrive that has no fault: the
    machine was busy, or an earlier server was killed before its client. Raises `WebError` if one is missing even then.
    The other arguments are those of `served`.
    """
    with _held(out, say):
        if is_built(out, samples, seed, _usual_port(out, samples, seed)) and _missing(out, samples) == 0:
            say(f"demo web: {samples} samples in {out / 'site'} (already there)")
            say(f"demo pairs: {out / 'web'} (already fetched)")
            return 0
        with _served(out, samples, seed, say, progress, stale):
            status = download(False)
            if status == 0 and (missing := _missing(out, samples)):
                say(f"demo pairs: {missing} of {samples} images that are there did not arrive: once more ...")
                status = download(True)
        if status == 0 and (missing := _missing(out, samples)):
            raise WebError(f"{missing} of {samples} images did not arrive: is the machine too busy? Run it again")
        return status


@contextmanager
def served(
    out: Path,
    samples: int,
    seed: int,
    say: Say,
    progress: Progress | None = None,
    stale: tuple[Path, ...] = (),
) -> Iterator[None]:
    """Builds the web in `out` if need be, and serves it at the port of its addresses until the end of the block.

    say: gets a line for everything worth telling. stale: folders that were made from an earlier web; they are removed,
    as `out`/web is, before another one is built. Raises what `build_web` raises.
    """
    with _held(out, say), _served(out, samples, seed, say, progress, stale):
        yield


@contextmanager
def _served(
    out: Path, samples: int, seed: int, say: Say, progress: Progress | None, stale: tuple[Path, ...]
) -> Iterator[None]:
    if read_recipe(out) is None and (out / "web").exists():
        raise WebError(f"{out / 'web'} was not made by this command: remove it, or rename it")
    with _listen(_usual_port(out, samples, seed), say) as listener:
        port = listener.getsockname()[1]
        if not is_built(out, samples, seed, port):
            for folder in (out / "web", *stale):
                if folder.exists():
                    shutil.rmtree(folder)
                    say(f"removed {folder}, which an earlier demo web had made")
        built = build_web(out, samples, seed, progress=progress, port=port)
        say(f"demo web: {samples} samples in {out / 'site'}{'' if built else ' (already there)'}")
        with serving(out / "site", listener):
            say(f"demo web: served at http://{HOST}:{port}/ while it is fetched")
            yield


@contextmanager
def _held(out: Path, say: Say) -> Iterator[None]:
    prepare(out)
    with alone(out, lambda: say(f"another demo is at work in {out}: waiting for it ...")):
        yield


def _usual_port(out: Path, samples: int, seed: int) -> int:
    """The port of this very web where it is there, else the one that every demo tries first."""
    recipe = read_recipe(out)
    port = recipe.get("port") if isinstance(recipe, dict) else None
    return port if isinstance(port, int) and is_built(out, samples, seed, port) else PORT


def _missing(out: Path, samples: int) -> int:
    """How many of the images that are to arrive are not in the whole tars of `out`/web."""
    arrived = 0
    for path in (out / "web").glob("*_stats.json"):
        try:
            stats = json.loads(path.read_text())
            shard = path.name.removesuffix("_stats.json")
            files = {kind: out / "web" / f"{shard}.{kind}" for kind in ("tar", "parquet")}
            if all(file.stat().st_size == stats[kind]["bytes"] for kind, file in files.items()):
                arrived += int(stats["successes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the download command fetches this shard again
    return max(0, samples - arrived)


def _listen(port: int, say: Say) -> socket.socket:
    try:
        return listen(port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise WebError(f"no port of {HOST} can be had: {os.strerror(error.errno or 0).lower()}") from error
    listener = listen(0)
    say(f"port {port} of {HOST} is taken, so the demo web is built for port {listener.getsockname()[1]}")
    return listener
