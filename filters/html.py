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
# Their content is code, not text, as far as the end tag. One that is never closed is taken for a word about HTML.
CODE = frozenset({"script", "style"})
# The reading beside a character of <ruby>: hidden where the ruby is closed, text anywhere else. HTML lets its end tag
# be left out, so these end it too.
READING = frozenset({"rt", "rp"})
_READING_ENDS = frozenset({"rt", "rp", "rb", "rtc", "ruby"})
# Elements of MathML, and of other vocabularies in pasted office text (`<o:p>`, `<st1:place>`).
_FOREIGN = (
    r"math|mi|mo|mn|ms|mtext|mspace|mrow|mfrac|msup|msub|msubsup|msqrt|mroot|mover|munder|munderover|mtable|mtr|mtd"
    r"|mstyle|mfenced|mpadded|semantics|(?:o|v|w|x|m|u[0-9]|st[0-9]|fb|g|svg|mml|xsl|dc|rdf|media|content|image):[a-z]+"
)
# Elements of SVG are English words: only with attributes, self-closed or as an end tag.
_DRAWN = (
    "path|circle|rect|line|polyline|polygon|ellipse|g|defs|use|text|tspan|stop|symbol|mask|pattern|marker|image|filter"
    "|lineargradient|radialgradient|clippath|animate|foreignobject"
)

_NAMES = "|".join(sorted(INLINE | SPACED | CODE, key=len, reverse=True))
_BOOLEANS = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|contenteditable|controls|crossorigin|declare|default|defer"
    "|disabled|download|formnovalidate|hidden|inert|ismap|itemscope|loop|mozallowfullscreen|multiple|muted|nohref"
    "|nomodule|noresize|noshade|novalidate|nowrap|open|playsinline|readonly|required|reversed|scoped|seamless|selected"
    "|webkitallowfullscreen|webkit-playsinline"
)
# Attributes. A quoted value may hold `>`, or `<` if it directly follows its `=` and holds no `>` (at most four of each
# kind), so a scan passes a handful of `<` and ends: linear as a whole.
_RICH = r"""=\s*(?>"[^"<>]*(?:<[^"<>]*){1,4}"|'[^'<>]*(?:<[^'<>]*){1,4}')"""
_PLAIN = rf"""(?>"[^"<]*"|'[^'<]*'|[^<>"'=]++|(?!{_RICH})=|["'])"""
_ATTRIBUTES = rf"""(?:{_PLAIN}*+(?:{_RICH}{_PLAIN}*+){{0,4}}>|[^<>]*>)"""
# What the end of the caption may have cut in two, sure to be a tag only if its name or its attribute is telling.
_CUT = (
    rf"(?:{_NAMES})\s+[a-z-]+\s*=[^<>]*"
    rf"|(?:{_NAMES})\s+(?:class|id|style|href|src|alt|title|width|height|target|rel|border|align|data-[a-z]+)\s*"
    r"|/?(?:br|hr|img|div|span|li|ul|ol|td|tr|th|tbody|table|strong|em|font|h[1-6]|center|iframe|input)\s*/?"
    rf"|/(?:{_NAMES})\s*"
)
_TAG = re.compile(
    rf"""<(?P<end>/?)(?P<name>{_NAMES})(?:\s*/?>|(?:\s+(?:{_BOOLEANS}))+\s*/?>|(?=[\s/][^<>]*=){_ATTRIBUTES})"""
    rf"""|</?(?=m|[a-z0-9]+:|semantics)(?P<foreign>{_FOREIGN})(?:\s*/?>|(?=[\s/][^<>]*=){_ATTRIBUTES})"""
    rf"""|</(?:{_DRAWN})\s*>|<(?:{_DRAWN})(?:\s*/>|(?=[\s/][^<>]*=){_ATTRIBUTES})"""
    rf"""|<(?=[a-z/][^<>]*\Z)(?:{_CUT})\Z|<!doctype\b[^<>]*>|<\?xml\b[^<>]*>""",
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
    more about them), which also spares deep trees of blocks. Inline elements keep their tags, and so do scripts, styles
    and readings that are closed, so that the parser takes their content away.
    """
    tags = list(_TAG.finditer(text))
    names = [(tag["name"] or "").lower() for tag in tags]
    closed_at = {name: place for place, name in enumerate(names) if name and tags[place]["end"]}  # the last end tag
    parts: list[str] = []
    position = 0
    hidden = ""  # the script, style or reading whose content this is
    ruby_until = -1  # the last end tag of the ruby that is open
    for place, (tag, name) in enumerate(zip(tags, names, strict=True)):
        parts.append(_escape(text[position : tag.start()]))
        position = tag.end()
        starts = not tag["end"]
        if hidden in CODE:
            if name == hidden and not starts:
                parts.append(f"</{hidden}> ")
                hidden = ""
            continue
        if hidden and name in _READING_ENDS:
            parts.append(f"</{hidden}>")
            hidden = ""
        if name == "ruby" and starts and place > ruby_until:
            ruby_until = closed_at.get(name, -1)
        if name in CODE and starts and closed_at.get(name, -1) > place:
            parts.append(f" <{name}>")
            hidden = name
        elif name in READING and starts and ruby_until > place:
            parts.append(f"<{name}>")
            hidden = name
        elif name in READING:
            continue
        elif name in INLINE:
            parts.append(f"<{tag['end']}{name}>")
        else:
            parts.append("" if tag["foreign"] else " ")
    parts.append(_escape(text[position:]))
    return "".join(parts)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _strip_comments(text: str) -> str:
    """Takes comments and PHP out where they are closed, and the frame of CDATA off its text."""
    for start, end in (("<!--", "-->"), ("<?php", "?>"), ("<?=", "?>")):
        text = _strip_between(text, start, end, keep=False)
    return _strip_between(text, "<![CDATA[", "]]>", keep=True)


def _strip_between(text: str, start: str, end: str, keep: bool) -> str:
    """The text without what stands between the marks. A search that fails ends it, so that '<!--' * n stays linear."""
    first = text.find(start)
    if first < 0:
        return text
    parts: list[str] = []
    position = 0
    while first >= 0 and (last := text.find(end, first + len(start))) >= 0:
        parts.append(text[position:first])
        if keep:
            parts.append(text[first + len(start) : last])
        position = last + len(end)
        first = text.find(start, position)
    return " ".join([*parts, text[position:]]) if parts else text
