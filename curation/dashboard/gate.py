"""Who is let in, and what every answer forbids.

The one decision: without a token only this machine is served, and only under its own names (or a page elsewhere could
point a name of its own at loopback and read the answers); with one, whoever has it, by whatever name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Scope: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[[Scope, Any, Any], Awaitable[None]]

_LOCAL = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?\Z")
# Scripts, styles, images and answers of this server alone; no frames, no forms elsewhere, nothing inline.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Gate:
    """Stands before the application. token: None serves loopback's names only. port: tells cookies apart."""

    def __init__(self, app: App, token: str | None, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"winnow_{port}"

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                extra = {**_HEADERS, **({} if b"cache-control" in present else {"Cache-Control": "no-store"})}
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        refused = self._refused(Request(scope))
        await (self._app if refused is None else refused)(scope, receive, send_guarded)

    def _refused(self, request: Request) -> Response | None:
        """What is answered instead of a page; None lets the request in."""
        asking, mode = (request.headers.get(f"sec-fetch-{name}", "") for name in ("site", "mode"))
        if asking in ("cross-site", "same-site") and mode != "navigate":
            return PlainTextResponse("Other pages are not served.\n", 403)
        if self._token is None:
            if _LOCAL.match(request.headers.get("host", "").lower()):
                return None
            return PlainTextResponse("This page is served on loopback only: open it by 127.0.0.1 or localhost.\n", 403)
        given = request.query_params.get("token")
        if given is not None and self._right(given):
            rest = urlencode([pair for pair in parse_qsl(request.url.query) if pair[0] != "token"])
            path = "/" + request.url.path.lstrip("/")  # `//` would begin another host's address
            answer = RedirectResponse(f"{path}{'?' if rest else ''}{rest}", 303)
            answer.set_cookie(self._cookie, _hashed(given), httponly=True, samesite="strict")
            return answer
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        told = bearer if scheme.lower() == "bearer" else None
        cookie = request.cookies.get(self._cookie)
        if given is None and cookie is not None and hmac.compare_digest(cookie.encode(), _hashed(self._token).encode()):
            return None
        if given is None and told is not None and self._right(told):
            return None
        what = "no token" if (given, told, cookie) == (None, None, None) else "wrong token"
        return PlainTextResponse(
            f"{what}: open the address that `python -m curation dashboard` printed, with its ?token=...\n", 401
        )

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), (self._token or "").encode())


def _hashed(token: str) -> str:
    """What a cookie holds: letters and digits alone, whatever the token is made of."""
    return hashlib.sha256(token.encode()).hexdigest()
