"""Each manner of answering as a client on a plain socket sees it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo.server import HOST, OVERSIZED, listen, serving
from demo.site import Reply, SiteError, write_pack
from demo.web import build_web

BODY = bytes(range(256)) * 200
TYPE = (("Content-Type", "image/jpeg"),)
MANNERS = ("send", "pieces", "chunked", "unsized", "hold", "drip", "cut", "reset", "oversized", "endless")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("site")
    replies = [Reply(f"/{manner}", BODY, 200, TYPE, manner) for manner in MANNERS]  # type: ignore[arg-type]
    replies += [Reply("/moved?a=1", b"", 302, (("Location", "/send"),)), Reply("/empty", b"", 503)]
    write_pack(folder, 0, replies)
    listener = listen(0)
    number: int = listener.getsockname()[1]
    with serving(folder, listener):
        yield number


def ask(port: int, target: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request("GET", target)
    return connection.getresponse()


def raw(port: int, request: bytes, most: int = 1 << 20) -> bytearray:
    """What comes back until the server closes, or `most` bytes of it."""
    with socket.create_connection((HOST, port), timeout=20) as client:
        client.sendall(request)
        found = bytearray()
        while len(found) < most and (piece := client.recv(1 << 16)):
            found += piece
        return found


@pytest.mark.parametrize("manner", ["send", "pieces", "chunked", "unsized"])
def test_a_body_arrives_whole(port: int, manner: str) -> None:
    answer = ask(port, f"/{manner}")
    assert (answer.status, answer.getheader("Content-Type")) == (200, "image/jpeg")
    length = str(len(BODY)) if manner in ("send", "pieces") else None
    assert answer.getheader("Content-Length") == length
    assert answer.getheader("Transfer-Encoding") == ("chunked" if manner == "chunked" else None)
    assert answer.read() == BODY


def test_status_headers_and_query_count(port: int) -> None:
    answer = ask(port, "/moved?a=1")
    assert (answer.status, answer.getheader("Location"), answer.read()) == (302, "/send", b"")
    assert ask(port, "/moved").status == 404
    assert ask(port, "/empty").status == 503
    assert ask(port, "/nowhere").status == 404


def test_a_cut_body_is_shorter_than_it_says(port: int) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(port, "/cut").read()
    assert caught.value.partial == BODY[: len(BODY) // 2]


def test_a_reset_is_a_reset(port: int) -> None:
    with pytest.raises(ConnectionResetError):
        raw(port, b"GET /reset HTTP/1.1\r\n\r\n")


def test_a_held_answer_never_begins(port: int) -> None:
    with socket.create_connection((HOST, port), timeout=0.5) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_drip_keeps_coming_byte_by_byte(port: int) -> None:
    with socket.create_connection((HOST, port), timeout=20) as client:
        client.sendall(b"GET /drip HTTP/1.1\r\n\r\n")
        reader = client.makefile("rb")
        while reader.readline() != b"\r\n":
            pass
        before = time.monotonic()
        assert [reader.read(1) for _ in range(4)] == [BODY[i : i + 1] for i in range(4)]
        assert time.monotonic() - before > 0.4


@pytest.mark.parametrize("manner", ["oversized", "endless"])
def test_too_much_is_announced_or_simply_sent(port: int, manner: str) -> None:
    found = raw(port, f"GET /{manner} HTTP/1.1\r\n\r\n".encode(), most=40 << 20)
    assert len(found) >= 40 << 20
    assert (f"Content-Length: {OVERSIZED}".encode() in found) == (manner == "oversized")


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00 a TLS hello", b"POST / HTTP/1.1\r\n\r\n", b"HEAD / HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_get_is_refused_in_plain_http(port: int, said: bytes) -> None:
    assert raw(port, said).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_those_who_wait_keep_nobody_from_being_served(port: int) -> None:
    """100 connections that get nothing, and hundreds of answers beside them."""
    waiting = []
    try:
        for target in ("/hold", "/drip") * 50:
            client = socket.create_connection((HOST, port), timeout=20)
            client.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
            waiting.append(client)
        before = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            bodies = list(pool.map(lambda _: ask(port, "/send").read(), range(400)))
        took = time.monotonic() - before
    finally:
        for client in waiting:
            client.close()
    assert bodies == [BODY] * 400
    assert took < 10  # 1,500/s on a free core; a busy machine is let off


def test_the_end_comes_at_once_and_frees_the_port(tmp_path: Path) -> None:
    write_pack(tmp_path, 0, [Reply("/hold", BODY, 200, TYPE, "hold")])
    listener = listen(0)
    number = listener.getsockname()[1]
    others = set(threading.enumerate())
    with serving(tmp_path, listener), socket.create_connection((HOST, number), timeout=20) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        assert len(set(threading.enumerate()) - others) == 1
        before = time.monotonic()
    assert time.monotonic() - before < 5
    assert not set(threading.enumerate()) - others
    listen(number).close()


def test_a_folder_without_a_site_is_said_before_anything_is_served(tmp_path: Path) -> None:
    listener = listen(0)
    with pytest.raises(SiteError), serving(tmp_path, listener):
        pytest.fail("there is nothing to serve")
    assert listener.fileno() == -1


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    with listen(0) as free:
        number = free.getsockname()[1]
    build_web(tmp_path, 3, workers=1, port=number)
    command = [sys.executable, "-m", "demo", "serve", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        assert f"http://{HOST}:{number}/ until Ctrl-C" in process.stdout.readline()
        assert ask(number, "/").status == 404
        taken = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert taken.returncode == 1
        assert taken.stderr == (
            f"error: port {number} of {HOST}, which the URLs name, cannot be had: address already in use\n"
        )
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "stopped\n"
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130


def test_serving_nothing_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "serve", "--out", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert shown.returncode == 1
    assert shown.stderr.startswith(f"error: {tmp_path} holds no whole demo web: build it with")
    assert shown.stderr.count("\n") == 1
