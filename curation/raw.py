"""Raw pairs as rows: what a reader makes of whatever the input holds.

The one decision: a reader never drops and never raises for a sample. Every sample becomes a row, with a problem where
it cannot be used; only damage that hides how many samples there were is a warning of the unit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class SourceError(Exception):
    """A unit's input cannot be read at all: one line with the file, what is wrong and what to do."""


@dataclass
class Raw:
    """n samples as the source has them; every list has n entries."""

    keys: list[str] = field(default_factory=list)
    images: list[memoryview | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    # "fetch:<why>" or "unreadable:<why>" where the sample cannot be used.
    problems: list[str | None] = field(default_factory=list)
    # The source's other columns.
    columns: list[Mapping[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Names of the columns where a schema says so (Parquet); None where each sample brings its own (tars).
    schema: frozenset[str] | None = None

    def add(
        self,
        key: str,
        image: memoryview | None,
        caption: bytes | str | None,
        columns: Mapping[str, Any],
        problem: str | None,
    ) -> None:
        if problem is None and image is None:
            problem = "unreadable:no_image"
        text, caption_problem = _text(caption)
        self.keys.append(key)
        self.images.append(image)
        self.captions.append(text)
        self.columns.append(columns)
        self.problems.append(problem or caption_problem)


def _text(caption: bytes | str | None) -> tuple[str | None, str | None]:
    """A caption as text, and what is wrong with it. Bytes that are no UTF-8 are shown with U+FFFD."""
    if caption is None:
        return None, "unreadable:no_caption"
    if isinstance(caption, bytes):
        try:
            return caption.decode(), None
        except UnicodeDecodeError:
            return caption.decode(errors="replace"), "unreadable:caption_encoding"
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return caption.encode(errors="replace").decode(), "unreadable:caption_encoding"
    return caption, None


# The first match counts. What begins with ^ is our own opener's text, or one that quotes a URL or a server behind its
# first words: nobody outside can choose the word that a failure is filed under.
_FETCH_REASONS = (
    (r"^HTTP Error (\d{3})", r"http_\1"),
    (r"^bad url", "bad_url"),
    (r"^scheme not allowed", "scheme"),
    (r"^opt out", "opt_out"),
    (r"^blocked address", "blocked_address"),
    (r"^dns: ", "dns"),
    (r"^connection ", "connection"),
    (r"^too slow", "too_slow"),
    (r"^too large", "too_large"),
    (r"^redirects: ", "redirects"),
    (r"^tls: ", "tls"),
    (r"^cut off", "cut_off"),
    (r"^encoding: ", "encoding"),
    (r"^not an image", "not_image"),
    (r"^empty body", "empty"),
    (r"^hash mismatch$", "hash_mismatch"),
    # urllib.request.Request, before any opener sees the URL
    (r"^unknown url type: |^Invalid IPv6 URL|^netloc .* under NFKC|appear to be an IPv4|^An IPv4 address", "bad_url"),
    (r"^<urlopen error unknown url type", "scheme"),
    (r"timed? ?out", "timeout"),
    (r"X-Robots-Tag", "opt_out"),
    (r"too small", "too_small"),
    (r"area too large", "too_large"),
    (r"aspect ratio", "aspect_ratio"),
    (r"decod|!buf\.empty|cannot identify", "decode"),
    (r"certificate|SSL", "tls"),
    (r"Name or service|getaddrinfo|resolve", "dns"),
    (r"IncompleteRead", "cut_off"),
    (r"refused|reset|unreachable|Remote end closed", "connection"),
)


def fetch_reason(message: Any) -> str:
    """A short word for a downloader's free-text message, so that failures can be counted."""
    text = str(message or "")
    for pattern, reason in _FETCH_REASONS:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return match.expand(reason)
    return "other"


# `json.dumps` makes an encoder of its own in every call that asks for anything but its defaults.
_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)


def source_json(columns: Mapping[str, Any], without: Iterable[str | None]) -> str:
    """The source's other columns as one line of JSON; nulls and what the ledger has anyway are left out."""
    skip = set(without)
    kept = {name: value for name, value in columns.items() if name not in skip and value is not None}
    return _LINE.encode(plain_json(kept)) if kept else "{}"


def plain_json(value: Any, depth: int = 0) -> Any:
    """The value as strict JSON can hold it; nothing that a source nests deeper than 32 levels."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict | list) and depth >= 32:
        return "nested too deeply"
    if isinstance(value, dict):
        return {plain_json(str(key)): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item, depth + 1) for item in value]
    return value
