"""A web server on loopback that says exactly what a test wants, byte by byte; and an internet made of such servers."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.error import URLError

import pytest

from curation.fetch.address import Address, dial
from curation.fetch.opener import Limits, Opener
from curation.raw import fetch_reason

PUBLIC = "93.184.216.34"
Page = bytes | Callable[[socket.socket], None]
BODY = bytes(range(256)) * 1000
OWN = Limits(max_bytes=1 << 20, max_seconds=10, allow_private_hosts=True)


def fetch(url: str, limits: Limits = OWN, timeout: float = 5) -> bytes:
    with Opener(limits).open(url, timeout=timeout) as response:
        return response.read()


def why(url: str, limits: Limits = OWN, timeout: float = 5) -> str:
    """The reason that the ledger gives when this URL cannot be fetched."""
    with pytest.raises(URLError) as caught:
        fetch(url, limits, timeout)
    return fetch_reason(str(caught.value))


def answer(body: bytes = b"", status: str = "200 OK", **headers: Any) -> bytes:
    """A whole answer. Content-Length is the body's unless given; None leaves a header out."""
    told = {"content_length": len(body), "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in told.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"moved", status, location=location)


class Site(socketserver.ThreadingTCPServer):
    """Answers each path with bytes, or hands the connection to a function. `asked`: the heads of all requests.

    A function may wait on `ended`, which is set when the test is over.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, pages: Mapping[str, Page], tls: ssl.SSLContext | None) -> None:
        self.pages = pages
        self.tls = tls
        self.asked: list[str] = []
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def drip(self, connection: socket.socket, start: bytes, again: bytes, every: float = 0.02) -> None:
        """Sends `start`, then `again` for ever, until the other side has gone."""
        connection.sendall(start)
        while not self.ended.wait(every):
            connection.sendall(again)


class _Handler(socketserver.BaseRequestHandler):
    server: Site

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            connection = self.request
            if self.server.tls is not None:
                self.request = connection = self.server.tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(65536)
                if not received:
                    return
                head += received
            text = head.decode("latin-1")
            self.server.asked.append(text)
            page = self.server.pages.get(text.split(" ")[1], answer(b"lost", "404 Gone Fishing"))
            if callable(page):
                page(connection)
            else:
                connection.sendall(page)
        self.request.close()


@contextlib.contextmanager
def serve(pages: Mapping[str, Page], tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    with Site(pages, tls) as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.ended.set()
            site.shutdown()
            thread.join()


class Internet:
    """Names with any addresses one likes, and a server on loopback behind those that are dialled.

    `names`: for each name the answers of the resolver, one a question, the last one again and again. `looked_up` and
    `dialled` tell what was done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.servers: dict[str, Site] = {}
        self.looked_up: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr("curation.fetch.opener.dial", self.dial)

    def _getaddrinfo(self, host: str, port: int, *args: Any, **more: Any) -> list[Any]:
        self.looked_up.append(host)
        if host not in self.names:
            return self._real(host, port, *args, **more)
        answers = self.names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in addresses for entry in self._real(address, port, *args, **more)]

    def dial(self, address: Address, seconds: float) -> socket.socket:
        _, sockaddr = address
        self.dialled.append(sockaddr[:2])
        if sockaddr[0] not in self.servers:
            raise ConnectionRefusedError(111, "nobody there")
        return dial((socket.AF_INET, ("127.0.0.1", self.servers[sockaddr[0]].port)), seconds)
