"""Starts the server of the live page, and tells where it is.

The one decision: everything that can be wrong (no runs, a port in use, a library that is missing) is told before
anything is served, so a page that opens is a page that works.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from urllib.parse import quote

from curation.plan import RunError
from curation.progress import say

TOKEN = "WINNOW_DASHBOARD_TOKEN"


def serve(folders: Sequence[str], host: str, port: int, token: str | None, profiles: str) -> None:
    """Serves until it is interrupted. Raises `RunError`, `StorageError` with one line."""
    try:
        import duckdb  # noqa: F401  said now, not at the first search
        import uvicorn

        from curation.dashboard.app import Dashboard
        from curation.dashboard.runs import Failure, Runs
    except ModuleNotFoundError as error:
        raise RunError(f"the dashboard needs {error.name}: pip install -e '.[dashboard]'") from error
    runs = Runs(folders)
    found, failures = runs.all(), []
    for run in found.values():
        try:
            run.look()
        except Failure as failure:
            failures.append(str(failure))
    where = ", ".join(folders)
    if not found:
        raise RunError(
            f"{where}: no runs here (no run.json, nor in a folder below): `python -m curation run` makes one"
        )
    if len(failures) == len(found):
        raise RunError(failures[0])
    for line in failures:
        say(f"note: left out: {line}")
    listening = _listen(host, port)
    port = int(listening.getsockname()[1])
    given = token or os.environ.get(TOKEN) or (None if _is_loopback(host) else secrets.token_urlsafe(24))
    if given is not None and (len(given) < 8 or not given.isascii() or not given.isprintable() or " " in given):
        raise RunError("--token: needs 8 ASCII characters or more and no spaces; without one, one is made")
    app = Dashboard(runs, folders, profiles).app(given, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
    shown = f"[{host}]" if ":" in host else socket.gethostname() if host in ("0.0.0.0", "::") else host
    many = f"{len(found) - len(failures):,} run{'s' if len(found) - len(failures) != 1 else ''} and decisions"
    query = "" if given is None else f"?token={quote(given, safe='')}"
    sys.stdout.write(f"dashboard: http://{shown}:{port}/{query}\n")
    sys.stdout.flush()
    say(f"{many} of {where}; Ctrl-C ends it")
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError):
            raise RunError(f"--host {host}: no such address here") from error
        reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise RunError(f"{host}:{port} cannot be listened on ({reason}): give --port another number, or 0") from error
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
