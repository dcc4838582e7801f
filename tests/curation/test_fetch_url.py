"""URLs and addresses, without a network: what is asked for, and what is refused before anything is sent."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from curation.fetch.address import is_public, resolve
from curation.fetch.error import FetchError
from curation.fetch.url import follow, parse_url
from curation.raw import fetch_reason

REFUSED = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1
224.0.0.1 224.0.1.1 239.1.1.1 240.0.0.1 255.255.255.255
:: ::1 ::7f00:1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:8.8.8.8
64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:0:7f00:1::1 2001:10::1 2001:20::1
2001:db8::1 2002:7f00:1::1 2002:a9fe:a9fe::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1
fe80::1%lo fec0::1 ff02::1 ff0e::1
"""
PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 172.15.255.255 172.32.0.1
191.255.255.255 192.167.1.1 192.169.0.1 223.255.255.254 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:4860:4860::8888
2606:4700::1111 2a00:1450:4001::200e
"""


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTPS://Example.COM:443/A.jpg#top", "https://example.com/A.jpg"),
        ("http://example.com:8080/a", "http://example.com:8080/a"),
        ("http://example.com:/a", "http://example.com/a"),
        ("http://example.com?x=1", "http://example.com/?x=1"),
        ("  http://example.com/a.jpg\n", "http://example.com/a.jpg"),
        ("http://example.com/a b.jpg?c=d e", "http://example.com/a%20b.jpg?c=d%20e"),
        ("http://example.com/a%20b%zz.jpg", "http://example.com/a%20b%zz.jpg"),
        ("http://example.com/图/ü.jpg?q=é", "http://example.com/%E5%9B%BE/%C3%BC.jpg?q=%C3%A9"),
        ("http://example.com/a[1]|{2}\"'<>.jpg?a[]='b'", "http://example.com/a[1]|%7B2%7D%22'%3C%3E.jpg?a[]=%27b%27"),
        ("http://example.com\\img\\a.jpg?b\\c", "http://example.com/img/a.jpg?b\\c"),
        ("http:///example.com//a", "http://example.com//a"),
        ("http://bücher.example/a", "http://xn--bcher-kva.example/a"),
        ("http://BÜCHER。example/a", "http://xn--bcher-kva.example/a"),
        ("http://faß.example/", "http://xn--fa-hia.example/"),
        ("http://💩.example/", "http://xn--ls8h.example/"),
        ("http://ｅｘａｍｐｌｅ.com/", "http://example.com/"),
        ("http://-a_b-.example./", "http://-a_b-.example./"),
        ("http://%65xample.com/", "http://example.com/"),
        ("http://[2606:4700::0001]:80/", "http://[2606:4700::1]/"),
    ],
)
def test_a_url_is_read_as_a_browser_reads_it(written: str, asked: str) -> None:
    assert str(parse_url(written)) == asked
    assert str(parse_url(asked)) == asked
    assert asked.isascii()


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "bad_url"),
        ("None", "bad_url"),
        ("//example.com/a", "bad_url"),
        ("example.com/a", "bad_url"),
        ("http://", "bad_url"),
        ("http:///", "bad_url"),
        ("http://:80/", "bad_url"),
        ("http://example.com/a\r\nHost: b", "bad_url"),
        ("http://example.com\n.evil.example/", "bad_url"),
        ("http://example.com/\x00", "bad_url"),
        ("http://example.com/\x7f", "bad_url"),
        ("http://example.com/\ud800", "bad_url"),
        ("http://user:pw@example.com/", "bad_url"),
        ("http://example.com@127.0.0.1/", "bad_url"),
        ("http://example.com:0/", "bad_url"),
        ("http://example.com:65536/", "bad_url"),
        ("http://example.com:٨٠/", "bad_url"),
        ("http://example.com:80:80/", "bad_url"),
        ("http://exa mple.com/", "bad_url"),
        ("http://exa%00mple.com/", "bad_url"),
        ("http://exa%ffmple.com/", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://℀.example/", "bad_url"),  # "a/c" once it is normalised
        (f"http://{'a' * 64}.example/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://[::1]x/", "bad_url"),
        ("http://[fe80::1%25eth0]/", "bad_url"),
        ("http://[127.0.0.1]/", "bad_url"),
        ("file:///etc/passwd", "scheme"),
        ("ftp://example.com/a", "scheme"),
        ("gopher://example.com/_x", "scheme"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "scheme"),
        ("javascript:alert(1)", "scheme"),
    ],
)
def test_what_is_no_url_of_an_image_is_refused(written: str, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_url(written)
    assert fetch_reason(str(caught.value)) == reason


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b.jpg", "https://example.com/b.jpg"),
        ("b.jpg?x=1#y", "https://example.com/dir/b.jpg?x=1"),
        ("?x=1", "https://example.com/dir/a.jpg?x=1"),
        ("//other.example/b", "https://other.example/b"),
        ("\\\\other.example\\b", "https://other.example/b"),
        ("http://other.example", "http://other.example/"),
        ("/bücher/a b".encode().decode("latin-1"), "https://example.com/b%C3%BCcher/a%20b"),
        ("/b\xfccher", "https://example.com/b%C3%BCcher"),
    ],
)
def test_a_location_is_followed_as_a_browser_does(location: str, target: str) -> None:
    assert str(follow(parse_url("https://example.com/dir/a.jpg"), location)) == target


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://user@example.com/", "http://[::1", "/\x00", "data:,"]
)
def test_a_location_is_vetted_like_a_url(location: str) -> None:
    with pytest.raises(FetchError, match=r"^(bad url|scheme not allowed): "):
        follow(parse_url("https://example.com/dir/a.jpg"), location)


@pytest.mark.parametrize("address", REFUSED.split())
def test_addresses_that_are_never_fetched_from(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(address)


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(FetchError, match=r"^dns: "):
        resolve("nothing.invalid", 80, 30)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "dns: no answer"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "dns: name not found"),
        (UnicodeError("label empty or too long"), "dns: name not found"),
    ],
)
def test_what_the_resolver_says(monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def getaddrinfo(*args: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(FetchError) as caught:
        resolve("example.com", 80, 5)
    assert str(caught.value) == text


def test_a_resolver_that_does_not_answer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: release.wait(30) and [])
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        resolve("example.com", 80, 0.2)
    assert time.monotonic() - start < 1.2
    release.set()
