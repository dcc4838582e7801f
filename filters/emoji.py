"""Filter `emoji`: drops captions that hold emoji, as Unicode means the word.

The one decision: what counts is what a reader sees as a coloured picture. That is a character with emoji presentation,
any emoji character followed by U+FE0F, a flag or half of one, a keycap, and whatever modifiers and joiners weld
together (one emoji, not four). Characters that are text by default (trade mark, copyright, a heart or a telephone
without U+FE0F) and digits are text, since product captions are full of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filters.base import Filter, Need

_VS15, _VS16, _ZWJ = "\ufe0e", "\ufe0f", "\u200d"
_SKIN = "\U0001f3fb-\U0001f3ff"
_FLAG = "\U0001f1e6-\U0001f1ff"


class Emoji(Filter):
    """Keeps captions with at most `max_count` emoji.

    `strict` counts every character that Unicode lists as an emoji, also those that are text by default (the trade
    mark sign, a plain heart). Digits, # and * are emoji only inside a keycap, strict or not. What U+FE0E marks as text
    is text in both.
    """

    name: ClassVar[str] = "emoji"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"max_count"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"count": (0, 64)}

    max_count: int = Field(0, ge=0)
    strict: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"count": pa.int32()}

    def fingerprint(self) -> dict[str, Any]:
        import emoji

        return {**super().fingerprint(), "emoji": emoji.__version__}

    def score(self, samples: pa.Table) -> dict[str, pa.Array]:
        captions = _array(samples["caption"])
        gate, pattern = _compiled(self.strict)
        hit = pc.fill_null(pc.match_substring_regex(captions, gate), False)
        counts = pc.if_else(pc.is_null(captions), pa.scalar(None, pa.int32()), pa.scalar(0, pa.int32()))
        found = [sum(1 for _ in pattern.finditer(caption)) for caption in captions.filter(hit).to_pylist()]
        if found:
            counts = pc.replace_with_mask(counts, hit, pa.array(found, pa.int32()))
        return {"count": counts}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return _array(pc.less_equal(scores["count"], self.max_count))


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def code_points() -> tuple[frozenset[str], frozenset[str]]:
    """Emoji of one code point: those that are pictures by default, and those that are text without U+FE0F.

    The library has no Emoji_Presentation property, but Unicode's emoji-test.txt, from which its data comes, calls a
    single code point fully qualified exactly if it has it, and lists the others with U+FE0F as fully qualified.
    """
    import emoji

    qualified = {text for text, data in emoji.EMOJI_DATA.items() if data["status"] == emoji.STATUS["fully_qualified"]}
    modifiers = {text for text, data in emoji.EMOJI_DATA.items() if data["status"] == emoji.STATUS["component"]}
    pictures = {text for text in qualified if len(text) == 1} | {text for text in modifiers if len(text) == 1}
    texts = {text[0] for text in qualified if len(text) == 2 and text[1] == _VS16}
    return frozenset(pictures), frozenset(texts)


@lru_cache(maxsize=2)
def _compiled(strict: bool) -> tuple[str, re.Pattern[str]]:
    """RE2 class that every caption with an emoji matches, and the pattern that counts emoji in Python."""
    pictures, texts = code_points()
    picture, text, any_base = _ranges(pictures), _ranges(texts), _ranges(pictures | texts)
    part = rf"[{any_base}](?:{_VS16}|[{_SKIN}])?"
    first = [
        rf"[{picture}](?!{_VS15})(?:{_VS16}|[{_SKIN}])?",
        rf"[{text}](?:{_VS16}|[{_SKIN}])",
        rf"[{text}](?={_ZWJ}[{any_base}])",
    ]
    if strict:
        first.append(rf"[{text}](?!{_VS15})")
    tags = "(?:[\U000e0020-\U000e007e]+\U000e007f)?"
    pattern = rf"[{_FLAG}]{{1,2}}|[0-9#*]{_VS16}?\u20e3|(?:{'|'.join(first)}){tags}(?:{_ZWJ}{part})*"
    gate = f"[{picture}{_FLAG}{_SKIN}{_VS16}{_ZWJ}\u20e3{text if strict else ''}]"
    return gate, re.compile(pattern)


def _ranges(characters: Iterable[str]) -> str:
    """A regular expression class (without its brackets) of the characters, as ranges."""
    points = sorted(map(ord, characters))
    parts: list[str] = []
    start = previous = points[0]
    for point in [*points[1:], -1]:
        if point == previous + 1:
            previous = point
            continue
        parts.append(chr(start) if start == previous else f"{chr(start)}-{chr(previous)}")
        start = previous = point
    return "".join(parts)
