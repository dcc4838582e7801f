"""urllib for hostile lists: an opener that only fetches from the public internet, so many bytes, in so much time.

The one decision: the whole fetch is one loop here, not a chain of urllib's handlers. Every hop is the same four steps:
read the URL, resolve once, vet every address, connect to a vetted address. No name is looked up a second time, so an
answer that changes in between (DNS rebinding) changes nothing.

What follows from it:
- HTTP_PROXY and its kin are ignored: a proxy resolves names itself, and with that the guard would be gone. Where a
  proxy is the only way out, nothing can be fetched with this opener.
- A redirect may lead from https to http, as in a browser's address bar: no secret travels along. Any port is allowed.
- Cookies and authentication do not exist. URLs with credentials are refused.
- `urlopen(..., context=...)` builds an opener of its own and passes this one by.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Any, cast
from urllib.error import HTTPError

from curation.fetch.address import dial, is_public, resolve
from curation.fetch.error import FetchError, failure, told_plainly
from curation.fetch.response import Budget, Response, Wire, phrase
from curation.fetch.robots import refuses
from curation.fetch.url import Url, follow, parse_url

_REDIRECTS = {301, 302, 303, 307, 308}
# Ours to say, or nothing that a picture's server needs to know.
_NOT_SENT = {"Host", "Accept-Encoding", "Connection", "Content-Length", "Transfer-Encoding", "Range", "Te"}
_SECRETS = {"Authorization", "Cookie", "Proxy-Authorization"}


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a body, decoded; max_seconds: from the name look-up to the last byte, redirects included.

    allow_private_hosts lifts the address rule and nothing else: for servers of one's own, and tests.
    user_agent replaces what the caller sends; None leaves it. opt_out: whether an answer whose X-Robots-Tag forbids the
    use (to all, or to `agent`) is left unread.
    """

    max_bytes: int = 32 * 2**20
    max_seconds: float = 30.0
    max_redirects: int = 5
    allow_private_hosts: bool = False
    user_agent: str | None = None
    opt_out: bool = False
    agent: str | None = None


def install(limits: Limits) -> None:
    """Makes urllib.request.urlopen of this process fetch within `limits`, in all of its threads."""
    urllib.request.install_opener(Opener(limits))


class Opener(urllib.request.OpenerDirector):
    """Holds nothing but its settings: any number of threads use it at once."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])

    def open(self, fullurl: str | urllib.request.Request, data: Any = None, timeout: Any = None) -> Response:
        """The answer of the last hop, its body unread. Raises FetchError, and HTTPError for what is not 2xx.

        timeout: seconds for the look-up, for connecting and for each wait of the connection; all together they get
        `max_seconds`, whatever the number of hops.
        """
        request = urllib.request.Request(fullurl) if isinstance(fullurl, str) else fullurl
        method = request.get_method()
        if data is not None or request.data is not None or method not in ("GET", "HEAD"):
            raise FetchError("method not allowed: only get and head are sent")
        budget = Budget(self.limits.max_seconds, timeout if isinstance(timeout, int | float) else None)
        told = [(name.title(), value) for name, value in (*self.addheaders, *request.header_items())]
        headers = {name: value for name, value in told if name not in _NOT_SENT}
        if self.limits.user_agent is not None:
            headers["User-Agent"] = self.limits.user_agent
        url = parse_url(request.full_url)
        seen = {url}
        while True:
            response = self._ask(url, method, headers, budget)
            redirected = response.status in _REDIRECTS
            answered = 200 <= response.status < 300
            if self.limits.opt_out and (answered or redirected) and self._refused(response):
                response.close()
                raise FetchError("opt out: x-robots-tag")
            if answered:
                return response
            response.close()
            location = response.headers.get("location") if redirected else None
            if location is None:
                status = response.status
                raise HTTPError(str(url), status, phrase(status), response.headers, io.BytesIO())
            url = follow(url, location)
            if url in seen:
                raise FetchError("redirects: in a circle")
            if len(seen) > self.limits.max_redirects:
                raise FetchError(f"redirects: more than {self.limits.max_redirects}")
            seen.add(url)
            headers = {name: value for name, value in headers.items() if name not in _SECRETS}

    def _refused(self, response: Response) -> bool:
        return refuses(response.headers.get_all("X-Robots-Tag", []), self.limits.agent)

    def _ask(self, url: Url, method: str, headers: dict[str, str], budget: Budget) -> Response:
        """One hop: the answer to one request, or a FetchError. The socket is closed unless a Response carries it."""
        sock = self._connect(url, budget)
        try:
            with told_plainly():
                if url.scheme == "https":
                    sock = self._secure(sock, url, budget)
                connection = http.client.HTTPConnection(url.host, url.port)
                connection.sock = cast(Any, Wire(sock, budget, self.limits.max_bytes))
                connection.request(method, url.target, headers={"Host": url.netloc, **headers, "Connection": "close"})
                return Response(url, connection.getresponse(), sock, self.limits.max_bytes)
        except BaseException:
            sock.close()
            raise

    def _connect(self, url: Url, budget: Budget) -> socket.socket:
        """A connection to the first address that answers, after all of them were vetted."""
        try:
            addresses = resolve(url.host, url.port, budget.seconds())
        except TimeoutError:
            raise budget.ran_out("looking up the name") from None
        if not self.limits.allow_private_hosts and not all(is_public(sockaddr[0]) for _, sockaddr in addresses):
            raise FetchError("blocked address: not on the public internet")
        problem = FetchError("connection failed")
        for address in addresses:
            seconds = budget.seconds()
            try:
                return dial(address, seconds)
            except TimeoutError:
                problem = budget.ran_out("connecting")
            except OSError as error:
                problem = failure(error)
        raise problem

    def _secure(self, sock: socket.socket, url: Url, budget: Budget) -> ssl.SSLSocket:
        sock.settimeout(budget.seconds())  # for the handshake as a whole
        try:
            return self._tls.wrap_socket(sock, server_hostname=url.host.rstrip("."))
        except TimeoutError:
            raise budget.ran_out("in the tls handshake") from None
        except ssl.SSLError:  # a refused certificate is a ValueError too
            raise
        except ValueError:  # a name that TLS cannot carry
            raise FetchError("bad url: host") from None
