"""A real S3 API on loopback (moto's server in a process of its own) and a proxy before it that can hurt what passes.

The one decision behind this module: the proxy speaks HTTP, so that it can write a log of requests (what was put, in
which order) and hurt chosen ones: refuse with the store's own errors, be slow, cut the connection in the middle.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
from botocore.client import Config

KEY, SECRET = "AKIATESTKEYOFNOBODY1", "hunter2-not-to-be-seen-anywhere"
_SERVE = """
import os, threading
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
os.read(0, 1)  # until the tests' process closes the pipe, also by dying
os._exit(0)
"""
_ERRORS = {
    301: ("PermanentRedirect", "The bucket you are attempting to access must be addressed using another endpoint."),
    403: ("AccessDenied", "Access Denied"),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
}


@dataclass(frozen=True)
class Request:
    """A line of the log. `path`: `/bucket/key`; `query` as the client sent it; `size`: bytes of the body."""

    method: str
    path: str
    query: str
    size: int
    status: int  # 0: the proxy cut the connection
    answered: int = 0  # bytes of the answer's body
    copies: bool = False  # a PUT that makes the object from another one

    @property
    def kind(self) -> str:
        """What the store is asked for: PUT, COPY, GET, HEAD, LIST, DELETE, or a step of a multi-part upload."""
        if self.copies:
            return "COPY"
        names = parse_qs(self.query, keep_blank_values=True)
        if "uploads" in names or "uploadId" in names:
            return {"POST": "COMPLETE" if "uploadId" in names else "CREATE", "PUT": "PART", "DELETE": "ABORT"}[
                self.method
            ]
        return "LIST" if self.method == "GET" and "list-type" in names else self.method


@dataclass(frozen=True)
class Fault:
    """What happens to a request. One of: an answer of this status; a cut after half of the body; a wait before."""

    status: int | None = None
    cut_request: bool = False
    cut_response: bool = False
    wait_s: float = 0.0


Chooser = Callable[[str, str, int], Fault | None]  # method, path, number of the request (from 0)


@dataclass
class Proxy:
    """Listens on loopback, passes requests on to the server behind, and keeps their log."""

    port: int
    log: list[Request] = field(default_factory=list)
    choose: Chooser | None = None
    # Called when a body of a PUT arrives half: for tests that kill the writer there.
    on_half: Callable[[], None] | None = None
    _server: ThreadingHTTPServer | None = None
    _upstream: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            number, self._count = self._count, self._count + 1
        return self.choose(method, path, number) if self.choose else None

    def clear(self) -> None:
        """Forgets the log and the faults."""
        with self._lock:
            self.choose, self.on_half, self._count = None, None, 0
            self.log.clear()

    def listen(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        # While it does not listen, another socket keeps the port: see `refuse`.
        server = _Server(("127.0.0.1", self.port), handler)
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._server = server

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_all()
            self._server = None

    @contextmanager
    def refuse(self) -> Iterator[None]:
        """Connections are refused meanwhile, and open ones cut."""
        with socket.socket() as keeper:  # bound, not listening: the kernel refuses, and nobody else gets the port
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.close()
            keeper.bind(("127.0.0.1", self.port))
            try:
                yield
            finally:
                self.listen()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go as two: the second would wait 40 ms
    proxy: Proxy

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        fault = self.proxy.fault(self.command, path) or Fault()
        body = self._body(fault)
        if body is None:
            self._note(parts, 0, 0)
            return
        if fault.wait_s:
            time.sleep(fault.wait_s)
        if fault.status is not None:
            self._note(parts, len(body), fault.status)
            self._refuse(fault.status)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy._upstream, timeout=120)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        self._note(parts, len(body), 0 if fault.cut_response else answer.status, len(content))
        self._answer(answer, content, fault.cut_response)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self, fault: Fault) -> bytes | None:
        """The request's body; None where it was cut: half of it went on to the store, then both sides hung up."""
        size = int(self.headers.get("x-amz-decoded-content-length") or self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        pieces = self._chunks() if chunked else self._pieces(size)
        data, halved = bytearray(), not size or self.command != "PUT"
        for piece in pieces:
            data += piece
            if not halved and len(data) >= size // 2:
                halved = True
                if self.proxy.on_half is not None:
                    self.proxy.on_half()
                if fault.cut_request:
                    break
        else:
            if chunked or len(data) == size:
                return bytes(data)
        # Cut by the fault, or the client died: what it sent goes on, as through any router.
        self._half_upstream(bytes(data), chunked)
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size and (data := self.rfile.read1(min(size, 1 << 14))):
            size -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        """The bytes inside HTTP's own chunks; ends early, with an empty piece, where the client hangs up."""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield from self._pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _half_upstream(self, data: bytes, chunked: bool) -> None:
        if chunked:
            data = b"%x\r\n%b" % (len(data) + 1, data)  # a chunk that lacks its last byte
        with socket.create_connection(("127.0.0.1", self.proxy._upstream)) as upstream:
            head = [f"{self.command} {self.path} HTTP/1.1"]
            head += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "expect"]
            upstream.sendall("\r\n".join([*head, "", ""]).encode() + data)
            upstream.shutdown(socket.SHUT_WR)
            while select.select([upstream], [], [], 5)[0] and upstream.recv(65536):
                pass  # the store has seen the end before anyone goes on

    def _refuse(self, status: int) -> None:
        code, text = _ERRORS[status]
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self, answer: http.client.HTTPResponse, content: bytes, cut: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP, "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if answer.status != 204:
            self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, parts: Any, size: int, status: int, answered: int = 0) -> None:
        copies = "x-amz-copy-source" in self.headers
        request = Request(self.command, unquote(parts.path), parts.query, size, status, answered, copies)
        with self.proxy._lock:
            self.proxy.log.append(request)


_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


@dataclass
class Store:
    """The server, the proxy in front of it, and a client that goes around the proxy."""

    proxy: Proxy
    client: Any

    def environment(self) -> dict[str, str]:
        """What a process needs to reach the store through the proxy, and nothing of the machine's own settings."""
        return {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def bucket(self) -> str:
        """A new, empty bucket."""
        name = f"b{time.monotonic_ns()}"
        self.client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, by what follows the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key.removeprefix(prefix): self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def uploads(self, bucket: str) -> list[str]:
        """Keys of multi-part uploads that were begun and neither completed nor aborted."""
        listing = self.client.list_multipart_uploads(Bucket=bucket)
        return [upload["Key"] for upload in listing.get("Uploads", ())]


@contextmanager
def serving(**environment: str) -> Iterator[Store]:
    """Starts server and proxy on free ports; both end with the block, the server also if this process dies."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        upstream = int(server.stdout.readline())
        proxy = Proxy(0, _upstream=upstream)
        proxy.listen()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{upstream}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(proxies={}, retries={"max_attempts": 1}),
        )
        try:
            yield Store(proxy, client)
        finally:
            proxy.close()
    finally:
        server.stdin.close()
        server.wait(30)
        server.stdout.close()


@contextmanager
def serving_here(**more: str) -> Iterator[Store]:
    """The same, with what reaches it, and `more`, in the environment of this process."""
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in {**store.environment(), **more}.items():
            patch.setenv(name, value)
        yield store
