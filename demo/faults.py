"""The table of planted faults on the way to an image: how often each occurs, and why the fetch must fail.

The decision behind this module: a fault is an address with what the server does there, so that a real downloader meets
the real thing; the faulty rows come on top of the samples, which all arrive.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import NamedTuple

from demo.defects import occurrences
from demo.site import Manner, Reply

Headers = tuple[tuple[str, str], ...]


class Link(NamedTuple):
    """An address as the list has it (None: the row has none), and what its server does with it."""

    url: str | None
    replies: list[Reply]


class Place(NamedTuple):
    """Where a row's image lives: `base` as http://host:port, `target` as the path and query that a client asks for."""

    base: str
    target: str
    rng: random.Random

    def link(self, body: bytes = b"", status: int = 200, headers: Headers = (), manner: Manner = "send") -> Link:
        return Link(self.base + self.target, [Reply(self.target, body, status, headers, manner)])

    def moved(self, to: str, *behind: Reply) -> Link:
        """A redirect to an address, and what stands there."""
        status = self.rng.choice((301, 302, 303, 307, 308))
        headers = (("Location", to), ("Content-Type", "text/html"))
        return Link(self.base + self.target, [Reply(self.target, b"Moved.\n", status, headers), *behind])


class Oddity(NamedTuple):
    """`rate`: share of all samples whose image arrives in this odd way."""

    name: str
    rate: float


# At most one of these a sample: the image arrives all the same.
ODDITIES = (
    Oddity("image_as_html", 0.010),
    Oddity("octet_stream", 0.010),
    Oddity("untyped", 0.005),
    Oddity("redirected", 0.020),
    Oddity("redirected_far", 0.005),
    Oddity("chunked", 0.010),
    Oddity("unsized", 0.006),
    Oddity("gzipped", 0.004),
    Oddity("slow", 0.004),
    Oddity("opt_out_of_others", 0.006),
    Oddity("harmless_directive", 0.004),
    Oddity("unicode_address", 0.006),
)


class Fault(NamedTuple):
    """`rate`: rows that cannot be fetched, as a share of the samples, on top of them; `why`: their `fetch:<why>`."""

    name: str
    rate: float
    why: str
    picture: bool = False  # whether a picture stands behind it


FAULTS = (
    Fault("not_found", 0.0177, "http_404"),
    Fault("forbidden", 0.0067, "http_403"),
    Fault("gone", 0.0033, "http_410"),
    Fault("server_error", 0.0030, "http_500"),
    Fault("unavailable", 0.0030, "http_503"),
    Fault("no_first_byte", 0.0030, "timeout"),
    Fault("drip", 0.0013, "too_slow", picture=True),
    Fault("cut", 0.0040, "cut_off", picture=True),
    Fault("reset", 0.0020, "connection"),
    Fault("refused", 0.0020, "connection"),
    Fault("not_tls", 0.0010, "tls"),
    Fault("unknown_name", 0.0027, "dns"),
    Fault("page_as_image", 0.0100, "not_image"),
    Fault("home_page", 0.0033, "not_image"),
    Fault("empty_body", 0.0040, "empty"),
    Fault("redirect_loop", 0.0013, "redirects"),
    Fault("redirect_to_file", 0.0013, "scheme"),
    Fault("oversized", 0.0010, "too_large", picture=True),
    Fault("endless", 0.0010, "too_large", picture=True),
    Fault("opt_out", 0.0067, "opt_out", picture=True),
    Fault("other_scheme", 0.0020, "scheme"),
    Fault("no_address", 0.0017, "bad_url"),
    Fault("no_such_address", 0.0013, "bad_url"),
)
BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}


def plan_rows(samples: int, seed: int) -> list[Fault | None]:
    """The rows of the list in order: a fault, or None for the next sample."""
    faults = [fault for fault in FAULTS for _ in range(occurrences(fault.rate, samples))]
    rows: list[Fault | None] = [*faults, *[None] * samples]
    random.Random(f"faults/{seed}").shuffle(rows)
    return rows


def plan_oddities(samples: int, seed: int) -> dict[int, str]:
    """Index of a sample -> in which odd way its image arrives."""
    order = list(range(samples))
    random.Random(f"oddities/{seed}").shuffle(order)
    return {order.pop(): oddity.name for oddity in ODDITIES for _ in range(occurrences(oddity.rate, samples)) if order}


def arriving(place: Place, body: bytes, oddity: str | None) -> Link:
    """An address at which the body can be had, plainly or in an odd way."""
    typed = (("Content-Type", _content_type(body)),)
    elsewhere = Reply(f"{place.target}.to", body, 200, typed)
    if oddity is None:
        return place.link(body, headers=typed)
    if oddity == "image_as_html":
        return place.link(body, headers=(("Content-Type", "text/html; charset=utf-8"),))
    if oddity == "octet_stream":
        return place.link(body, headers=(("Content-Type", "application/octet-stream"),))
    if oddity == "untyped":
        return place.link(body)
    if oddity == "redirected":
        to = place.rng.choice((place.base + elsewhere.target, elsewhere.target))
        return place.moved(to, elsewhere)
    if oddity == "redirected_far":
        first = place.moved(f"{place.target}.1")
        second = place._replace(target=f"{place.target}.1").moved(f"{place.target}.2")
        third = place._replace(target=f"{place.target}.2").moved(elsewhere.target, elsewhere)
        return Link(first.url, [*first.replies, *second.replies, *third.replies])
    if oddity == "gzipped":
        return place.link(gzip.compress(body, 1, mtime=0), headers=(*typed, ("Content-Encoding", "gzip")))
    if oddity == "slow":
        return place.link(body, headers=typed, manner="pieces")
    if oddity == "opt_out_of_others":
        directive = place.rng.choice(("otherbot: noai", "otherbot: noai, noindex", "googlebot: noindex"))
        return place.link(body, headers=(*typed, ("X-Robots-Tag", directive)))
    if oddity == "harmless_directive":
        directive = place.rng.choice(("nosnippet", "all", "noarchive, max-image-preview: large"))
        return place.link(body, headers=(*typed, ("X-Robots-Tag", directive)))
    if oddity == "unicode_address":
        # As lists have it; a client has to encode it.
        at, quoted = place.rng.choice(
            (("图片", "%E5%9B%BE%E7%89%87"), ("café", "caf%C3%A9"), ("my photo", "my%20photo"))
        )
        return Link(
            f"{place.base}{place.target}.{at}.jpg", [Reply(f"{place.target}.{quoted}.jpg", body, 200, typed, "send")]
        )
    if oddity in ("chunked", "unsized"):
        return place.link(body, headers=typed, manner="chunked" if oddity == "chunked" else "unsized")
    raise ValueError(f"there is no oddity {oddity!r}")


def failing(place: Place, name: str, picture: bytes) -> Link:
    """An address with fault `name`. picture: what stands behind it where the fault has one."""
    return _FAULTS[name](place, picture)


def _content_type(body: bytes) -> str:
    if body.startswith(b"\x89PNG"):
        return "image/png"
    if body.startswith(b"GIF8"):
        return "image/gif"
    if body[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if body[4:12] == b"ftypavif" else "image/jpeg"


def _status(*codes: int) -> Callable[[Place, bytes], Link]:
    def link(place: Place, _: bytes) -> Link:
        status = place.rng.choice(codes)
        headers = (("Content-Type", "text/html"), *((("Retry-After", "3600"),) if status == 503 else ()))
        return place.link(_page(f"Error {status}", place.rng), status, headers)

    return link


def _manner(manner: Manner) -> Callable[[Place, bytes], Link]:
    def link(place: Place, picture: bytes) -> Link:
        return place.link(picture, headers=(("Content-Type", "image/jpeg"),), manner=manner)

    return link


def _elsewhere(*bases: str) -> Callable[[Place, bytes], Link]:
    """An address that no server of this web answers."""

    def link(place: Place, _: bytes) -> Link:
        return Link(place.rng.choice(bases) + place.target, [])

    return link


def _not_tls(place: Place, _: bytes) -> Link:
    """An https address of a server that speaks plain HTTP only."""
    return Link(place.base.replace("http:", "https:") + place.target, [])


def _page_as_image(place: Place, _: bytes) -> Link:
    title = place.rng.choice(("Just a moment...", "Image no longer available", "Sign in to see this picture"))
    body = _page(title, place.rng)
    if place.rng.random() < 0.2:
        body = json.dumps({"error": {"code": 404, "message": title}}).encode()
    kind = place.rng.choice(("image/jpeg", "image/jpeg", "text/html; charset=utf-8"))
    return place.link(body, headers=(("Content-Type", kind),))


def _home_page(place: Place, _: bytes) -> Link:
    """What has gone is redirected to the site's first page, which is there."""
    home = Reply(f"{place.target}.home", _page("Welcome", place.rng), 200, (("Content-Type", "text/html"),))
    return place.moved(home.target, home)


def _redirect_loop(place: Place, _: bytes) -> Link:
    other = place._replace(target=f"{place.target}.again")
    there, back = place.moved(other.target), other.moved(place.target)
    return Link(there.url, [*there.replies, *back.replies])


def _redirect_to_file(place: Place, _: bytes) -> Link:
    return place.moved(place.rng.choice(("file:///etc/hostname", "file:///etc/passwd", "ftp://127.0.0.1/a.jpg")))


def _opt_out(place: Place, picture: bytes) -> Link:
    directive = place.rng.choice(
        ("noai", "noindex, max-image-preview: large", "noai, noimageai", "NoIndex, nofollow", "*: noimageindex", "none")
    )
    return place.link(picture, headers=(("Content-Type", "image/jpeg"), ("X-Robots-Tag", directive)))


def _no_address(place: Place, _: bytes) -> Link:
    return Link(None, [])


def _no_such_address(place: Place, _: bytes) -> Link:
    """What a page says where the address of an image should stand."""
    bare = place.target.lstrip("/")
    return Link(place.rng.choice((bare, f"//cdn.invalid/{bare}", f"http://me:secret@127.0.0.1/{bare}")), [])


def _page(title: str, rng: random.Random) -> bytes:
    return (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>\n"
        f"<body><h1>{title}</h1><p>Request {rng.getrandbits(64):016x} ends here.</p></body></html>\n"
    ).encode()


_FAULTS: dict[str, Callable[[Place, bytes], Link]] = {
    "not_found": _status(404),
    "forbidden": _status(403),
    "gone": _status(410),
    "server_error": _status(500),
    "unavailable": _status(503),
    "no_first_byte": _manner("hold"),
    "drip": _manner("drip"),
    "cut": _manner("cut"),
    "reset": _manner("reset"),
    "refused": _elsewhere("http://127.0.0.1:1"),  # where nobody listens
    "not_tls": _not_tls,
    "unknown_name": _elsewhere("http://images.invalid", "http://cdn.pictures.invalid"),  # RFC 2606: never a name
    "page_as_image": _page_as_image,
    "home_page": _home_page,
    "empty_body": lambda place, _: place.link(headers=(("Content-Type", "image/jpeg"),)),
    "redirect_loop": _redirect_loop,
    "redirect_to_file": _redirect_to_file,
    "oversized": _manner("oversized"),
    "endless": _manner("endless"),
    "opt_out": _opt_out,
    "other_scheme": _elsewhere("file:///srv/www", "ftp://127.0.0.1"),
    "no_address": _no_address,
    "no_such_address": _no_such_address,
}
