"""HTML from parts: the one door through which text comes onto the page.

The one decision: whatever is not `Markup` is escaped when it becomes a child or an attribute, so a caption, a url or a
warning cannot become an element wherever it is shown. Characters that nobody sees, or that turn the order of the
others around, are written out first.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

# Of joiners only these are part of ordinary writing: emoji sequences, Persian, scripts of India.
_JOINERS = "\u200c\u200d"
# Categories of Unicode that have no picture of their own: control, format, surrogate, private use, not assigned, and
# the separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_DRAWN = {"rect", "line", "path"}
_VOID = {"meta", "img", "br", "link", "input"} | _DRAWN


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child]"


def visible(text: str, limit: int | None = None) -> str:
    """The text with every unseen character written out: `␊` for a line feed, `⟨U+202E⟩` for a bidirectional override.

    limit: characters that are shown of it; the length of a longer one is told.
    """
    shown = text if limit is None or len(text) <= limit else text[:limit]
    if not shown.isprintable():
        shown = "".join(map(_picture, shown))
    return shown if limit is None or len(text) <= limit else f"{shown} … ({len(text):,} characters)"


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if character in _JOINERS or unicodedata.category(character) not in _UNSEEN:
        return character
    return f"⟨U+{code:04X}⟩"


def join(*children: Child) -> Markup:
    """The children one after the other."""
    return Markup("".join(_pieces(children)))


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. attributes: `class_` and `aria_label` lose and change their underscores; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(visible(_text(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}/>" if name in _DRAWN else f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def _pieces(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield html.escape(visible(child))
        else:
            yield from _pieces(child)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
