"""The opener against real servers on loopback: what it fetches, and what it refuses."""

from __future__ import annotations

import gzip
import io
import os
import socket
import urllib.request
import zlib
from urllib.error import HTTPError

import pytest

from curation.fetch.error import FetchError
from curation.fetch.opener import Limits, Opener, install
from curation.raw import fetch_reason
from tests.curation.web import BODY, OWN, PUBLIC, Internet, answer, fetch, redirect, serve, why

pytestmark = pytest.mark.usefixtures("opener_of_before")


def test_urlopen_keeps_what_urllib_promises() -> None:
    page = answer(BODY, content_type="image/png").replace(b"\r\n", b"\r\nX-Robots-Tag: a\r\nX-Robots-Tag: b\r\n", 1)
    with serve({"/to": redirect("/a.png"), "/a.png": page, "/none": answer(b"", "204 No Content")}) as site:
        install(OWN)
        request = urllib.request.Request(f"{site.url}/to", headers={"User-Agent": "us", "Cookie": "secret"})
        with urllib.request.urlopen(request, timeout=5) as response:
            assert (response.status, response.code, response.getcode(), response.reason) == (200, 200, 200, "OK")
            assert response.geturl() == response.url == f"{site.url}/a.png"
            assert response.headers.get_all("X-Robots-Tag") == ["a", "b"]
            assert response.info()["content-type"] == "image/png"
            assert response.read(10) + response.read1(5) + response.read() == BODY
            assert response.read() == b""
        with pytest.raises(ValueError, match="closed"):
            response.read()
        with urllib.request.urlopen(f"{site.url}/a.png") as response:
            assert io.BufferedReader(response).readline() == BODY[:11]
        with urllib.request.urlopen(f"{site.url}/none") as response:
            assert (response.status, response.read()) == (204, b"")
        head = urllib.request.Request(f"{site.url}/a.png", method="HEAD")
        with urllib.request.urlopen(head) as response:
            assert response.headers["content-length"] == str(len(BODY))
            assert response.read() == b""
    first, second = site.asked[:2]
    assert "Accept-Encoding: identity" in first
    assert "User-Agent: us" in first
    assert "User-Agent: us" in second
    assert "secret" in first
    assert "secret" not in second
    assert f"Host: 127.0.0.1:{site.port}\r\n" in first


def test_another_user_agent_can_be_set() -> None:
    with serve({"/": answer(b"x")}) as site:
        request = urllib.request.Request(site.url, headers={"User-agent": "theirs"})
        Opener(Limits(allow_private_hosts=True, user_agent="ours")).open(request).close()
    assert "User-Agent: ours" in site.asked[0]
    assert "theirs" not in site.asked[0]


def test_urls_of_real_lists_are_quoted(internet: Internet) -> None:
    internet.names["xn--bcher-kva.example"] = [[PUBLIC]]
    with serve({"/%C3%BC%20b.jpg?c=%E5%9B%BE": answer(BODY)}) as site:
        internet.servers[PUBLIC] = site
        assert fetch("http://bücher.example/ü b.jpg?c=图#x", Limits()) == BODY
    assert "Host: xn--bcher-kva.example\r\n" in site.asked[0]


@pytest.mark.parametrize(
    "page",
    [
        answer(BODY, content_length=None, transfer_encoding=None),
        answer(b"%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY), content_length=None, transfer_encoding="Chunked"),
        answer(gzip.compress(BODY), content_encoding="gzip"),
        answer(gzip.compress(BODY[:999]) + gzip.compress(BODY[999:]) + b"\0\0", content_encoding="x-gzip"),
        answer(zlib.compress(BODY), content_encoding="deflate"),
        answer(BODY, content_encoding="utf-8"),
        b"HTTP/1.1 103 Early Hints\r\n\r\n".replace(b"103", b"100") + answer(BODY),
    ],
    ids=["to the end", "chunked", "gzip", "gzip of two", "deflate", "no coding", "after a 100"],
)
def test_a_body_arrives_as_it_is(page: bytes) -> None:
    with serve({"/": page}) as site:
        assert fetch(site.url) == BODY


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (answer(BODY, content_length=len(BODY) + 1), "cut_off"),
        (answer(b"", content_length=5), "cut_off"),
        (answer(b"5\r\nabc", content_length=None, transfer_encoding="chunked"), "cut_off"),
        (answer(b"3\r\nabc\r\n", content_length=None, transfer_encoding="chunked"), "cut_off"),
        (answer(b"-1\r\nabc", content_length=None, transfer_encoding="chunked"), "cut_off"),
        (answer(b"-5\r\nabc", content_length=None, transfer_encoding="chunked"), "cut_off"),
        (answer(b"x\r\nabc", content_length=None, transfer_encoding="chunked"), "cut_off"),
        (answer(gzip.compress(BODY)[:-9], content_encoding="gzip"), "cut_off"),
        (answer(b"abc", "206 Partial Content", content_range="bytes 0-2/9"), "cut_off"),
        (answer(BODY, content_encoding="gzip"), "encoding"),
        (answer(BODY, content_encoding="br"), "encoding"),
        (answer(BODY, transfer_encoding="gzip, chunked"), "encoding"),
        (b"", "connection"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", "connection"),
        (answer(b"x", "304 Not Modified"), "http_304"),
        (answer(b"x", "302 Found"), "http_302"),
        (answer(b"x", "403 timed out"), "http_403"),
        (answer(b"x", "503 Service Unavailable"), "http_503"),
        (answer(b"x", "521"), "http_521"),
        (redirect("file:///etc/passwd"), "scheme"),
        (redirect("ftp://127.0.0.1/a"), "scheme"),
        (redirect("http://user:pw@127.0.0.1/"), "bad_url"),
    ],
)
def test_a_broken_answer_is_no_success(page: bytes, reason: str) -> None:
    with serve({"/": page}) as site:
        assert why(site.url) == reason


def test_http_errors_are_those_of_urllib() -> None:
    with serve({}) as site, pytest.raises(HTTPError, match=r"^HTTP Error 404: Not Found$") as caught:
        fetch(site.url)
    assert caught.value.code == 404
    assert caught.value.headers["connection"] == "close"
    assert caught.value.read() == b""


def test_a_connection_that_is_reset_or_refused() -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(answer(b"x", content_length=9))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serve({"/": reset}) as site:
        assert why(site.url) in ("connection", "cut_off")
        url = site.url
    assert why(url) == "connection"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_nothing_is_ever_sent_but_questions(method: str) -> None:
    with pytest.raises(FetchError, match="method not allowed"):
        Opener(OWN).open(urllib.request.Request("http://127.0.0.1/", method=method))
    with pytest.raises(FetchError, match="method not allowed"):
        Opener(OWN).open("http://127.0.0.1/", data=b"x")


# What is fetched from whom


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"file://{os.path.abspath(__file__)}", "scheme"),
        ("ftp://127.0.0.1/a", "scheme"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "scheme"),
        ("gopher://127.0.0.1/1", "scheme"),
        ("http://127.0.0.1:{port}/", "blocked_address"),
        ("http://127.1:{port}/", "blocked_address"),
        ("http://0.0.0.0:{port}/", "blocked_address"),
        ("http://0:{port}/", "blocked_address"),
        ("http://2130706433:{port}/", "blocked_address"),
        ("http://0x7f000001:{port}/", "blocked_address"),
        ("http://0x7f.1:{port}/", "blocked_address"),
        ("http://0177.0.0.1:{port}/", "blocked_address"),
        ("http://１２７.０.０.１:{port}/", "blocked_address"),
        ("http://%31%32%37.0.0.1:{port}/", "blocked_address"),
        ("http://localhost:{port}/", "blocked_address"),
        ("http://LOCALHOST:{port}/", "blocked_address"),
        ("http:\\\\127.0.0.1:{port}/", "blocked_address"),
        ("http://[::1]:{port}/", "blocked_address"),
        ("http://[::ffff:127.0.0.1]:{port}/", "blocked_address"),
        ("http://[::ffff:7f00:1]:{port}/", "blocked_address"),
        ("http://[::127.0.0.1]:{port}/", "blocked_address"),
        ("http://[64:ff9b::127.0.0.1]:{port}/", "blocked_address"),
        ("http://[2002:7f00:1::]:{port}/", "blocked_address"),
        ("http://169.254.169.254/latest/meta-data/", "blocked_address"),
        ("http://[fd00:ec2::254]/latest/meta-data/", "blocked_address"),
        ("http://10.0.0.1/", "blocked_address"),
        ("http://224.0.1.1/", "blocked_address"),
    ],
)
def test_nothing_inside_is_reached(url: str, reason: str) -> None:
    with serve({"/": answer(BODY)}) as site:
        assert why(url.format(port=site.port), Limits()) == reason
    assert site.asked == []


def test_allow_private_hosts_lifts_the_address_rule_alone() -> None:
    with serve({"/": answer(BODY)}) as site:
        assert fetch(f"http://2130706433:{site.port}") == BODY
    assert why(f"file://{os.path.abspath(__file__)}") == "scheme"


def test_a_name_is_looked_up_once_so_that_it_cannot_change_its_mind(internet: Internet) -> None:
    internet.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    with serve({"/": answer(BODY)}) as site:
        internet.servers = {PUBLIC: site, "127.0.0.1": site}
        assert fetch("http://rebinding.example/", Limits()) == BODY
        assert internet.looked_up == ["rebinding.example"]
        assert internet.dialled == [(PUBLIC, 80)]
        assert why("http://rebinding.example/", Limits()) == "blocked_address"
    assert len(site.asked) == 1


def test_every_address_of_a_name_must_be_public(internet: Internet) -> None:
    internet.names["mixed.example"] = [[PUBLIC, "10.0.0.1"]]
    assert why("http://mixed.example/", Limits()) == "blocked_address"
    assert internet.dialled == []


def test_the_next_address_is_tried(internet: Internet) -> None:
    internet.names["two.example"] = [["93.184.216.35", PUBLIC]]
    with serve({"/": answer(BODY)}) as site:
        internet.servers[PUBLIC] = site
        assert fetch("http://two.example:81/", Limits()) == BODY
    assert internet.dialled == [("93.184.216.35", 81), (PUBLIC, 81)]
    internet.servers.clear()
    assert why("http://two.example/", Limits()) == "connection"


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
@pytest.mark.parametrize("inside", ["http://127.0.0.1:{port}/", "http://inside.example/", "//169.254.169.254/"])
def test_a_redirect_is_vetted_like_a_first_url(internet: Internet, status: str, inside: str) -> None:
    internet.names = {"good.example": [[PUBLIC]], "inside.example": [["192.168.0.1"]]}
    with serve({"/": answer(BODY)}) as secret, serve({"/": redirect(inside.format(port=secret.port), status)}) as site:
        internet.servers = {PUBLIC: site, "127.0.0.1": secret, "192.168.0.1": secret, "169.254.169.254": secret}
        assert why("http://good.example/", Limits()) == "blocked_address"
    assert internet.dialled == [(PUBLIC, 80)]
    assert secret.asked == []


def test_each_hop_looks_its_name_up_once(internet: Internet) -> None:
    internet.names = {"a.example": [[PUBLIC]], "b.example": [[PUBLIC]]}
    with serve({"/1": redirect("//b.example/2"), "/2": redirect("/3"), "/3": answer(BODY)}) as site:
        internet.servers[PUBLIC] = site
        assert fetch("http://a.example/1", Limits()) == BODY
    assert internet.looked_up == ["a.example", "b.example", "b.example"]


def test_redirects_end() -> None:
    pages = {"/circle": redirect("/circle/2"), "/circle/2": redirect("/circle"), "/self": redirect("")}
    chain = {f"/{n}": redirect(f"/{n - 1}") for n in range(1, 10)}
    with serve({**pages, **chain, "/0": answer(BODY)}) as site:
        assert why(f"{site.url}/circle") == "redirects"
        assert why(f"{site.url}/self") == "redirects"
        assert len(site.asked) == 3
        assert fetch(f"{site.url}/5") == BODY
        assert why(f"{site.url}/6") == "redirects"
        assert why(f"{site.url}/1", Limits(max_redirects=0, allow_private_hosts=True)) == "redirects"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/": answer(BODY)}) as site, serve({}) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        install(OWN)
        with urllib.request.urlopen(site.url, timeout=5) as response:
            assert response.read() == BODY
    assert proxy.asked == []


def test_img2dataset_downloads_through_it(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    downloader = pytest.importorskip("img2dataset.downloader")
    internet.names = {"good.example": [[PUBLIC]], "inside.example": [["10.0.0.1"]]}
    pages = {
        "/a.png": answer(BODY),
        "/no.png": answer(b"", content_length=1 << 30, x_robots_tag="noai"),
        "/large.png": answer(b"", content_length=1 << 30),
        "/cut.png": answer(b"x", content_length=9),
        "/inside": redirect("http://inside.example/"),
    }
    install(Limits(max_seconds=5))
    with serve(pages) as site:
        internet.servers[PUBLIC] = site

        def download(url: str) -> tuple[bytes | None, str | None]:
            _, stream, message = downloader.download_image((7, url), 5, None, {"noai"})
            return (stream.read() if stream else None), (fetch_reason(message) if message else None)

        assert download("http://good.example/a.png") == (BODY, None)
        for url, reason in {
            "http://good.example/no.png": "opt_out",
            "http://good.example/large.png": "too_large",
            "http://good.example/cut.png": "cut_off",
            "http://good.example/lost.png": "http_404",
            "http://good.example/inside": "blocked_address",
            "http://inside.example/a.png": "blocked_address",
            "http://127.0.0.1/": "blocked_address",
            f"file://{os.path.abspath(__file__)}": "scheme",
            "http://[::1": "bad_url",
            "good.example/a.png": "bad_url",
            "": "bad_url",
        }.items():
            assert download(url) == (None, reason), url
    assert "img2dataset" not in site.asked[0]
    assert "User-Agent: Mozilla/5.0" in site.asked[0]
