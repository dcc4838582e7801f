"""Filter `text_length`: drops captions that are too short or too long, counted after cleaning.

The one decision: each script is measured in its own unit. A rule on words deletes nearly all Chinese, which has no
spaces, so a caption with enough Han characters is long enough whatever its words are, and any other is judged by words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from filters.base import Filter, Need

_SEPARATOR = r"\s\x{85}\x{A0}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
# Han characters and Chinese punctuation end a word: "iPhone手机壳，red" has two.
_BREAK = rf"{_SEPARATOR}\p{{Han}}\x{{3001}}-\x{{303F}}\x{{FF01}}-\x{{FF0F}}\x{{FF1A}}-\x{{FF20}}"
# A word is a run without these that holds a letter or a digit, whatever its script: " - " and " ." are no words. RE2
# cannot say "a letter, but not Han"; "nothing of the other kinds" says the same.
WORD = rf"[^{_BREAK}]*[^{_BREAK}\p{{P}}\p{{S}}\p{{M}}\p{{Z}}\p{{C}}][^{_BREAK}]*"
HAN = r"\p{Han}"


class TextLength(Filter):
    """Keeps a caption that reaches one script's minimum and exceeds no maximum.

    Long enough: at least `min_han` Han characters, or at least `min_words` words and `min_chars` characters. So a
    Chinese caption of four characters stays, "iPhone 手机壳 红色" is judged by its Han characters, and "Nike 跑鞋"
    (one word, two Han characters) goes. `max_chars`, `max_words` and `max_han` hold for every caption. Characters are
    code points. Minimum and maximum lengths in words and characters are those of COYO and DataComp.
    """

    name: ClassVar[str] = "text_length"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset(
        {"min_chars", "max_chars", "min_words", "max_words", "min_han", "max_han"}
    )
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"chars": (0, 1024), "words": (0, 256), "han": (0, 512)}

    min_chars: int = Field(6, ge=0)
    max_chars: int = Field(1000, ge=1)
    min_words: int = Field(3, ge=0)
    max_words: int = Field(256, ge=1)
    min_han: int = Field(4, ge=1)
    max_han: int = Field(512, ge=1)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for unit in ("chars", "words", "han"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low > high:
                raise ValueError(f"min_{unit} ({low}) is greater than max_{unit} ({high}): no caption could be kept")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"chars": pa.int32(), "words": pa.int32(), "han": pa.int32()}

    def score(self, samples: pa.Table) -> dict[str, pa.Array]:
        captions = samples["caption"].combine_chunks()
        return {
            "chars": pc.utf8_length(captions).cast(pa.int32()),
            "words": pc.count_substring_regex(captions, WORD).cast(pa.int32()),
            "han": pc.count_substring_regex(captions, HAN).cast(pa.int32()),
        }

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        chars, words, han = (scores[unit] for unit in ("chars", "words", "han"))
        chinese = pc.greater_equal(han, self.min_han)
        english = pc.and_(pc.greater_equal(words, self.min_words), pc.greater_equal(chars, self.min_chars))
        short_enough = pc.and_(
            pc.less_equal(chars, self.max_chars),
            pc.and_(pc.less_equal(words, self.max_words), pc.less_equal(han, self.max_han)),
        )
        return pc.and_(pc.or_(chinese, english), short_enough).combine_chunks()
