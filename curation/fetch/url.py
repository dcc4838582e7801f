"""URLs as real lists write them, made fit for a request line.

The one decision: read a URL as a browser does (spaces and non-ASCII quoted, hosts in IDNA form, `\\` for `/`), because
that is how it once worked on a page; but refuse control characters and credentials, which no image needs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin

from curation.fetch.error import FetchError

PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
# Underscores and hyphens at an end are not in the standard, but in use.
_HOST = re.compile(r"(?=.{1,254}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
# What a browser leaves alone in a path and in a query; `%` is left, whether it begins an escape or not.
_PATH = "!$%&'()*+,/:;=@[]|"
_QUERY = "!$%&()*+,/:;=?@[\\]^`{|}"
# UTS 46 drops these from a host: soft hyphen, zero-width space, word joiner, byte order mark, variation selectors.
_IGNORED = re.compile("[\u00ad\u200b\u2060\ufeff\ufe00-\ufe0f]")


@dataclass(frozen=True)
class Url:
    """host: ASCII, lower-case, an IPv6 address without its brackets; target: path and query, all printable ASCII."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse_url(text: str) -> Url:
    """Raises FetchError: `bad url: ...` or `scheme not allowed`. What stands behind a # is dropped."""
    text = text.strip(" \t\r\n\f")
    if any(char < " " or char == "\x7f" for char in text):
        raise FetchError("bad url: control character")
    match = _SCHEME.match(text)
    if match is None:
        raise FetchError("bad url: no scheme")
    scheme = match[1].lower()
    if scheme not in PORTS:
        raise FetchError("scheme not allowed: only http and https are fetched")
    before, mark, query = text[match.end() :].partition("#")[0].partition("?")
    authority, _, path = before.replace("\\", "/").lstrip("/").partition("/")
    if "@" in authority:
        raise FetchError("bad url: credentials in it")
    host, port = _host_and_port(authority, scheme)
    try:
        target = f"/{quote(path, safe=_PATH)}{mark}{quote(query, safe=_QUERY)}"
    except UnicodeEncodeError:  # half of a surrogate pair
        raise FetchError("bad url: not unicode") from None
    return Url(scheme, host, port, target)


def follow(url: Url, location: str) -> Url:
    """Where a Location header leads. `location` is decoded as Latin-1, as http.client does."""
    with contextlib.suppress(UnicodeError):  # a server that really writes Latin-1
        location = location.encode("latin-1").decode()
    head, mark, tail = location.strip().partition("?")
    try:
        joined = urljoin(str(url), head.replace("\\", "/") + mark + tail)
    except ValueError:
        raise FetchError("bad url: host") from None
    return parse_url(joined)


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise FetchError("bad url: host")
        try:
            # A zone (fe80::1%eth0) only means something on the machine that wrote it; it is refused here as well.
            host = str(ipaddress.IPv6Address(host)) if "%" not in host else ""
        except ValueError:
            host = ""
        port = rest[1:]
    else:
        host, _, port = authority.partition(":")
        host = _ascii_host(host)
    if not host:
        raise FetchError("bad url: host")
    if port and (not _PORT.fullmatch(port) or not 0 < int(port) < 65536):
        raise FetchError("bad url: port")
    return host, int(port) if port else PORTS[scheme]


def _ascii_host(host: str) -> str:
    """The host as DNS has it; '' if it can be none.

    Browsers follow UTS 46, Python's `idna` codec the older IDNA 2003, which writes ß as ss and knows no emoji. This is
    UTS 46 without its list of forbidden letters: DNS does not know those anyway.
    """
    host = _IGNORED.sub("", unicodedata.normalize("NFKC", unquote(host)).lower()).replace("。", ".")
    if "\ufffd" in host:  # escapes that are no UTF-8
        return ""
    try:
        labels = [x if x.isascii() else "xn--" + x.encode("punycode").decode() for x in host.split(".")]
    except UnicodeError:
        return ""
    host = ".".join(labels)
    return host if _HOST.fullmatch(host) else ""
