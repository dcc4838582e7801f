"""Names of many files in one pattern: `part-{00000..00012}.tar`, `{en,zh}/*.tar`, `**/*.parquet`.

The one decision behind this module: braces name files that must exist, stars find files that do; both are expanded
here, so that a pattern means the same on a local disk and on an object store.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

_RANGE = re.compile(r"(\d+)\.\.(\d+)\Z")
_BRACES = re.compile(r"\{([^{}]*)\}")
_STARS = re.compile(r"[*?\[]")
_MAX_NAMES = 10_000_000


def is_pattern(path: str) -> bool:
    """Whether the path has braces or stars."""
    return bool(_BRACES.search(path) or _STARS.search(path))


def has_stars(path: str) -> bool:
    """Whether the path, its braces expanded, still has `*`, `?` or `[`."""
    return bool(_STARS.search(path))


def split_root(pattern: str) -> tuple[str, str]:
    """Cuts a pattern into the longest folder without braces or stars and the rest, which is relative to it."""
    starts = [match.start() for match in (_BRACES.search(pattern), _STARS.search(pattern)) if match]
    slash = pattern.rfind("/", 0, min(starts, default=len(pattern)))
    return (pattern[:slash] or "/", pattern[slash + 1 :]) if slash >= 0 else (".", pattern)


def expand_braces(pattern: str) -> Iterator[str]:
    """All names of a brace pattern in order: lists `{a,b}`, number ranges `{00..12}` as wide as their first number.

    ValueError for nested or unknown braces, a range that runs downwards, and patterns of over ten million names.
    """
    pieces = _BRACES.split(pattern)  # text, braces, text, braces, ..., text
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise ValueError("braces do not match or are nested: write {00000..00012} or {a,b}")
    choices = [[piece] if number % 2 == 0 else _choices(piece) for number, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MAX_NAMES:
        raise ValueError(f"stands for {count} names: {_MAX_NAMES} at most")
    return ("".join(parts) for parts in itertools.product(*choices))


def _choices(inner: str) -> list[str]:
    match = _RANGE.match(inner)
    if match is None:
        if "," not in inner or ".." in inner:
            raise ValueError(f"{{{inner}}} is neither a range like {{00000..00012}} nor a list like {{a,b}}")
        return inner.split(",")
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ValueError(f"the range {{{inner}}} runs downwards")
    if last - first >= _MAX_NAMES:
        raise ValueError(f"the range {{{inner}}} stands for {last - first + 1} names: {_MAX_NAMES} at most")
    width = len(match[1])
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def compile_stars(pattern: str) -> re.Pattern[str]:
    """A regular expression for a whole path: `*` and `?` stay inside a name, `**` crosses folders, `[a-c]`, `[!a]`.

    ValueError for a set of characters that is none, like `[z-a]`.
    """
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        elif pattern[at] == "[" and (close := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : close].replace("\\", r"\\").replace("[", r"\[")
            inner = "^" + inner[1:] if inner[0] == "!" else inner.replace("^", r"\^")
            parts.append(f"(?!/)[{inner}]")
            at = close + 1
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])))
            at += 1
    try:
        return re.compile("".join(parts) + r"\Z", re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} cannot be understood: {error}") from None
