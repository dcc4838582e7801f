"""The opener against servers that send too much, too slowly or badly signed: when it gives up, and what it leaves."""

from __future__ import annotations

import contextlib
import datetime
import gc
import gzip
import os
import socket
import ssl
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest

from curation.fetch.error import FetchError
from curation.fetch.opener import Limits, Opener, install
from curation.raw import fetch_reason
from tests.curation.web import BODY, OWN, PUBLIC, Internet, Page, answer, fetch, redirect, serve, why

pytestmark = pytest.mark.usefixtures("opener_of_before")


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (answer(b"", content_length=None), b"x" * 65536),
        (answer(b"", content_length=None, transfer_encoding="chunked"), b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        (answer(b"", content_length=None, transfer_encoding="chunked"), b"1\r\nx\r\n" * 9999),
        (answer(b"", content_length=None, transfer_encoding="chunked") + b"7fffffffffffffff\r\n", b"x" * 65536),
        (answer(b"", content_length=None, transfer_encoding="chunked") + b"-1\r\n", b"x" * 65536),
        (answer(b"", content_length=None, transfer_encoding="chunked") + b"0\r\n", b"A: b\r\n" * 999),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    ],
    ids=["no length", "chunks", "tiny chunks", "a huge chunk", "a negative chunk", "trailers", "100s"],
)
def test_a_body_without_end_is_too_large(start: bytes, again: bytes) -> None:
    with serve({"/": lambda connection: site.drip(connection, start, again, 0)}) as site:
        assert why(site.url) == "too_large"


def test_a_body_is_counted_to_the_byte() -> None:
    limits = Limits(max_bytes=len(BODY), allow_private_hosts=True)
    with serve({"/fits": answer(BODY), "/over": answer(BODY + b"x", content_length=None)}) as site:
        assert fetch(f"{site.url}/fits", limits) == BODY
        assert why(f"{site.url}/over", limits) == "too_large"


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    page = answer(b"", content_length=1 << 21)
    with (
        serve({"/": lambda connection: site.drip(connection, page, b"", 30)}) as site,
        Opener(OWN).open(site.url) as response,
    ):
        assert response.headers["content-length"] == str(1 << 21)  # still there for opt-out headers
        with pytest.raises(FetchError, match=r"^too large: over 1048576 bytes$"):
            response.read()


def test_a_bomb_does_not_unfold() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    assert len(bomb) < OWN.max_bytes
    with serve({"/": answer(bomb, content_encoding="gzip")}) as site:
        start = time.process_time()
        assert why(site.url) == "too_large"
        assert time.process_time() - start < 0.5


HEAD = answer(b"", content_length=1000)
CHUNKS = answer(b"", content_length=None, transfer_encoding="chunked")


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (HEAD, b"x"),
        (CHUNKS, b"1\r\nx\r\n"),
        (CHUNKS + b"0\r\n", b"A: b\r\n"),
        (b"H", b"T"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        (b"HTTP/1.1 100 Continue\r\n", b"\r\nHTTP/1.1 100 Continue\r\n"),
    ],
    ids=["body", "chunks", "trailers", "status", "header", "headers", "100s"],
)
def test_a_drip_ends_when_the_time_is_over(start: bytes, again: bytes) -> None:
    limits = Limits(max_seconds=0.7, allow_private_hosts=True)
    with serve({"/": lambda connection: site.drip(connection, start, again)}) as site:
        begun = time.monotonic()
        assert why(site.url, limits, timeout=0.5) == "too_slow"
        assert 0.6 < time.monotonic() - begun < 1.7


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", HEAD, HEAD + b"x"])
def test_silence_ends_after_the_timeout(start: bytes) -> None:
    with serve({"/": lambda connection: site.drip(connection, start, b"", 30)}) as site:
        begun = time.monotonic()
        assert why(site.url, timeout=0.4) == "timeout"
        assert 0.3 < time.monotonic() - begun < 1.4


def test_the_time_is_that_of_all_hops() -> None:
    def slowly(connection: socket.socket, hop: int) -> None:
        site.ended.wait(0.25)
        connection.sendall(redirect(f"/{hop + 1}"))

    with serve({f"/{n}": partial(slowly, hop=n) for n in range(9)}) as site:
        begun = time.monotonic()
        assert why(f"{site.url}/0", Limits(max_seconds=0.6, allow_private_hosts=True)) == "too_slow"
        assert 0.5 < time.monotonic() - begun < 1.6


def test_looking_up_and_connecting_count_too(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: release.wait(30) and [])
    for seconds, timeout, reason in [(0.3, 5, "too_slow"), (5, 0.3, "timeout")]:
        begun = time.monotonic()
        assert why("http://a.example/", Limits(max_seconds=seconds), timeout) == reason
        assert 0.2 < time.monotonic() - begun < 1.3
    release.set()


def test_a_full_backlog_is_a_timeout() -> None:
    """A server that accepts nobody: the kernel's queue fills up, and further connections are left waiting."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        begun = time.monotonic()
        assert why(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=0.4) == "timeout"
        assert 0.3 < time.monotonic() - begun < 1.4


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for good.example and its key, in one PEM."""
    pytest.importorskip("cryptography", reason="makes the certificates of these tests")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "good.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("good.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "good.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + private)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_must_be_trusted_and_for_this_name(
    internet: Internet, certificate: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet.names = {"good.example": [[PUBLIC]], "other.example": [[PUBLIC]], "plain.example": [["93.184.216.35"]]}
    pages = {"/": answer(BODY), "/down": redirect("http://plain.example/"), "/up": redirect("https://good.example/")}
    with serve(pages, tls) as site, serve(pages) as plain:
        internet.servers = {PUBLIC: site, "93.184.216.35": plain}
        with pytest.raises(FetchError, match=r"^tls: certificate refused: self-signed certificate$") as caught:
            fetch("https://good.example/", Limits())
        assert fetch_reason(str(caught.value)) == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch("https://good.example/", Limits()) == BODY
        assert internet.dialled[-1] == (PUBLIC, 443)
        with pytest.raises(FetchError, match=r"^tls: certificate refused: hostname mismatch$"):
            fetch("https://other.example/", Limits())
        assert fetch("http://plain.example/up", Limits()) == BODY
        assert fetch("https://good.example/down", Limits()) == BODY
    assert len(plain.asked) == 2


def test_a_server_that_speaks_no_tls_or_none_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain, ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(why, f"https://127.0.0.1:{plain.getsockname()[1]}/")
        with plain.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert fetched.result() == "tls"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        for limits, timeout, reason in [
            (OWN, 0.3, "timeout"),
            (Limits(max_seconds=0.3, allow_private_hosts=True), 5, "too_slow"),
        ]:
            begun = time.monotonic()
            assert why(url, limits, timeout) == reason
            assert 0.2 < time.monotonic() - begun < 1.3


def test_a_dripped_handshake_ends_when_the_time_is_over(tls: ssl.SSLContext) -> None:
    """The server's side of a handshake is made in memory and sent a byte at a time."""

    def handshake(connection: socket.socket) -> None:
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = tls.wrap_bio(received, sent, server_side=True)
        received.write(connection.recv(65536))
        with pytest.raises(ssl.SSLWantReadError):
            server.do_handshake()
        with contextlib.suppress(OSError):
            for byte in sent.read():
                connection.sendall(bytes([byte]))
                if ended.wait(0.02):
                    break

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        dripping = pool.submit(lambda: handshake(server.accept()[0]))
        begun = time.monotonic()
        limits = Limits(max_seconds=0.6, allow_private_hosts=True)
        assert why(f"https://127.0.0.1:{server.getsockname()[1]}/", limits) == "too_slow"
        assert 0.5 < time.monotonic() - begun < 1.6
        ended.set()
        dripping.result()


# Many at once


def test_64_threads_at_once() -> None:
    """All 64 are inside the server before any of them is answered; half of them are then cut off by their limits."""
    together = threading.Barrier(64)

    def meet(connection: socket.socket, number: int) -> None:
        together.wait(20)
        if number % 4 == 0:
            site.drip(connection, HEAD, b"x")
        elif number % 4 == 1:
            connection.sendall(answer(BODY, content_length=len(BODY) + 1))
        else:
            connection.sendall(answer(BODY[number:]))

    def one(number: int) -> bytes | str:
        try:
            with urllib.request.urlopen(f"{site.url}/{number}", timeout=20) as response:
                return bytes(response.read())
        except URLError as error:
            return fetch_reason(str(error))

    with serve({f"/{n}": partial(meet, number=n) for n in range(64)}) as site, ThreadPoolExecutor(64) as pool:
        install(Limits(max_seconds=4, allow_private_hosts=True))
        results = list(pool.map(one, range(64)))
    for number, result in enumerate(results):
        assert result == {0: "too_slow", 1: "cut_off"}.get(number % 4, BODY[number:])


def test_no_socket_is_left_open(certificate: Path, tls: ssl.SSLContext) -> None:
    """With the garbage collector off, whatever a failure leaves behind stays: 500 fetches of every kind leave none."""
    pages: dict[str, Page] = {
        "/ok": answer(BODY),
        "/cut": answer(b"x", content_length=9),
        "/large": answer(b"x", content_length=1 << 30),
        "/to": redirect("/ok"),
        "/inside": redirect("file:///etc/passwd"),
        "/broken": b"nonsense\r\n\r\n",
        "/silent": lambda connection: site.drip(connection, HEAD, b"", 30),
        "/unread": answer(BODY),
    }
    errors = []
    with serve(pages) as site, serve({}, tls) as secure:
        urls = [site.url + path for path in (*pages, "/lost")] + [secure.url]
        opener = Opener(OWN)
        gc.collect()
        gc.disable()
        try:
            before = len(os.listdir("/proc/self/fd"))
            for number in range(500):
                url = urls[number % len(urls)]
                if url.endswith("/silent") and number > 50:
                    url = site.url + "/broken"
                try:
                    # Who answers at all is waited for, however busy this machine is: 350 are to fail, no more.
                    with opener.open(url, timeout=0.1 if url.endswith("/silent") else 20) as response:
                        if not url.endswith("/unread"):
                            response.read()
                except URLError as error:
                    errors.append(error)  # and with it its traceback and all that its frames hold
            deadline = time.monotonic() + 10  # the server's own ends close when its threads come to it
            while (left := len(os.listdir("/proc/self/fd")) - before) > 10 and time.monotonic() < deadline:
                site.ended.wait(0.05)
        finally:
            gc.enable()
    assert len(errors) == 350
    assert left <= 10
