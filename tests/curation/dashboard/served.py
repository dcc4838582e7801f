"""The dashboard's real server in a thread of this process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from curation.dashboard.app import Dashboard
from curation.dashboard.runs import Runs


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Served:
    """`runs`: what is served; `port`: where, on loopback."""

    runs: Runs
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, host: str = "", method: str = "GET", **headers: str) -> Answer:
        """One request with the path as it is spelt here: nothing is tidied up on the way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{self.port}")
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def run(self, uri: str) -> str:
        """The address of a run below this server."""
        return next(
            f"/run/{run.id}" for run in self.runs.all().values() if run.output.uri.rstrip("/") == uri.rstrip("/")
        )


@contextmanager
def serving(folders: Sequence[str], token: str | None = None, port: int = 0) -> Iterator[Served]:
    runs = Runs(folders)
    listening = socket.create_server(("127.0.0.1", port))
    port = int(listening.getsockname()[1])
    app = Dashboard(runs, folders).app(token, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield Served(runs, port)
    finally:
        server.should_exit = True
        thread.join(10)
