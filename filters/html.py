"""Mapper `html`: entities become characters and tags go, in captions that really hold some.

The one decision: a tag is `<`, a known HTML element name and either nothing or attributes that look like attributes.
Everything else with an angle bracket ("x<y", "I <3 you", "a < b > c", `<PERSON>`) is text and stays. Arrow finds the
few captions that could hold markup; only those reach Python, and only those with a tag in them reach BeautifulSoup.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from filters.base import Mapper

# Elements of the HTML living standard and its obsolete list. Inline ones vanish without a trace (H<sub>2</sub>O);
# the others stand between words, so they leave a space ("Red shoe<br>size 9").
_INLINE = (
    "a abbr acronym b bdi bdo big blink cite code data del dfn em font i ins kbd label mark nobr q rb rp rt rtc "
    "ruby s samp small span strike strong sub sup time tt u var wbr "
)
_SPACED = (
    "address applet area article aside audio base basefont bgsound blockquote body br button canvas caption "
    "center col colgroup command datalist dd details dialog dir div dl dt embed fieldset figcaption figure footer "
    "form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html iframe img input isindex keygen legend li "
    "link listing main map marquee menu menuitem meta meter nav noembed noframes noscript object ol optgroup "
    "option output p param picture plaintext portal pre progress search section select slot source spacer summary "
    "svg table tbody td template textarea tfoot th thead title tr track ul video xmp "
)
INLINE, SPACED = frozenset(_INLINE.split()), frozenset(_SPACED.split())
# Their content is code, not text.
CODE = frozenset({"script", "style"})

_NAMES = "|".join(sorted(INLINE | SPACED | CODE, key=len, reverse=True))
_BOOLEANS = (
    "async|autofocus|autoplay|checked|compact|controls|defer|disabled|hidden|loop|multiple|muted|noshade|nowrap|open"
    "|readonly|required|reversed|selected"
)
# Attributes: a quoted value may hold `>`, none may hold `<`, so every scan ends at the next `<`: linear as a whole.
_ATTRIBUTES = r"""(?:(?>"[^"<]*"|'[^'<]*'|[^<>"']++|["'])*+>|[^<>]*>)"""
_TAG = re.compile(
    rf"""<(?P<end>/?)(?P<name>{_NAMES})(?:\s*/?>|(?:\s+(?:{_BOOLEANS}))+\s*/?>|(?=[\s/][^<>]*=){_ATTRIBUTES})"""
    rf"""|<(?:{_NAMES})\s+[a-z-]+\s*=[^<>]*\Z"""  # a tag that the end of the caption cut in two
    r"""|<!doctype\b[^<>]*>|<\?xml\b[^<>]*>""",
    re.IGNORECASE,
)
# `&amp;`, `&amp;amp;`, `&#38;amp;`: one ampersand, however often it was escaped.
_AMPERSANDS = re.compile(r"&(?:(?:amp|#0{0,8}38|#x0{0,8}26);)+", re.IGNORECASE)
# Without a semicolon only the five that editors lose it from, and never inside a word or a query string ("&lthough").
_ENTITY = re.compile(
    r"&(?:#[0-9]{1,10};?|#[xX][0-9a-fA-F]{1,8};?|[A-Za-z][A-Za-z0-9]{1,31};|(?:amp|lt|gt|quot|nbsp)(?![A-Za-z0-9;=]))"
)
# What could be markup at all: the only captions that Python sees.
_CANDIDATE = r"<[A-Za-z/!?]|&[A-Za-z#]"
# Markup inside markup is peeled one layer a pass. No page nests deeper; what does is an attack and loses its brackets.
_MAX_PASSES = 8
_BRACKETS = str.maketrans({"<": " ", ">": " ", "&": " "})


class Html(Mapper):
    """Unescapes entities to a fixed point and removes HTML tags, comments, scripts and styles.

    Hits: `entities` and `tags`, the captions that held at least one. White space is collapsed in those captions only.
    """

    name: ClassVar[str] = "html"
    version: ClassVar[str] = "1"

    def fingerprint(self) -> dict[str, Any]:
        import bs4

        return {**super().fingerprint(), "beautifulsoup4": bs4.__version__}

    def rewrite(self, captions: pa.LargeStringArray) -> tuple[pa.LargeStringArray, dict[str, int]]:
        hits = {"entities": 0, "tags": 0}
        mask = pc.fill_null(pc.match_substring_regex(captions, _CANDIDATE), False)
        cleaned = []
        for caption in captions.filter(mask).to_pylist():
            text, entities, tags = clean(caption)
            hits["entities"] += entities
            hits["tags"] += tags
            cleaned.append(text)
        if not cleaned:
            return captions, hits
        return pc.replace_with_mask(captions, mask, pa.array(cleaned, captions.type)), hits


def clean(caption: str) -> tuple[str, bool, bool]:
    """The caption as text, whether it held entities, whether it held tags; one with neither comes back as it is."""
    text, had_entities, had_tags = caption, False, False
    for _ in range(_MAX_PASSES):
        unescaped = _ENTITY.sub(_character, _AMPERSANDS.sub("&", text))
        stripped = _strip_tags(unescaped)
        if stripped == text:
            return text, had_entities, had_tags
        had_entities |= unescaped != text
        had_tags |= stripped != unescaped
        text = " ".join(stripped.split())
    return " ".join(text.translate(_BRACKETS).split()), had_entities, had_tags


def _character(match: re.Match[str]) -> str:
    entity = match.group()
    if entity[1] == "#":
        return html.unescape(entity)
    for name in (entity[1:], entity[1:].lower()):  # `&Amp;` is no entity, but the web writes it
        if name in html5:
            return html5[name]
    return entity


def _strip_tags(text: str) -> str:
    text = _strip_comments(text)
    if not _TAG.search(text):
        return text
    from bs4 import BeautifulSoup

    return BeautifulSoup(_canonical(text), "html.parser").get_text()


def _canonical(text: str) -> str:
    """Markup without surprises for the parser: known tags bare of attributes, every other `<` and `&` escaped.

    An element that separates words brings its own spaces. Of those only the space is left (the parser knows nothing
    more about them), which also spares deep trees of blocks; scripts and styles keep their tags, so that the parser
    takes their content away, and inline elements theirs.
    """
    parts: list[str] = []
    position = 0
    for match in _TAG.finditer(text):
        parts.append(_escape(text[position : match.start()]))
        name = (match["name"] or "").lower()
        if name in CODE:
            parts.append(f" <{match['end']}{name}> ")
        elif name in INLINE:
            parts.append(f"<{match['end']}{name}>")
        else:
            parts.append(" ")
        position = match.end()
    parts.append(_escape(text[position:]))
    return "".join(parts)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _strip_comments(text: str) -> str:
    """Takes closed comments out. A search that fails ends the loop, so that '<!--' * n stays linear."""
    start = text.find("<!--")
    if start < 0:
        return text
    parts: list[str] = []
    position = 0
    while start >= 0 and (end := text.find("-->", start + 4)) >= 0:
        parts.append(text[position:start])
        position = end + 3
        start = text.find("<!--", position)
    return " ".join([*parts, text[position:]]) if parts else text
