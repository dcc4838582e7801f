"""Filter `language`: drops captions with characters, or in languages, other than the kept ones.

The one decision: characters come first, as in the paper. A caption is foreign if it holds letters that neither English
nor Chinese is written with, and Han without kana or hangul is Chinese. Only what letters cannot tell, French from
English, is left to an optional detector, and only where a caption has enough letters to go by. docs/language.md has the
measured comparison behind the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, field_validator

from filters.base import Filter, Need
from filters.detectors import DetectorName, detector_fingerprint, load_detector

Kept = Literal["en", "zh"]

# What both languages share: ASCII, signs and punctuation, digits, emoji (another filter's business), by block.
_SHARED = (
    r"\x{00}-\x{BF}"  # ASCII, and Latin-1 signs such as the degree, the pound and the copyright sign
    r"×÷μπΩ"  # and the Greek letters that stand for units and numbers, next to each other too (μΩ)
    r"\x{2BB}\x{2BC}\x{2C6}-\x{2C9}\x{2DA}\x{2DC}"  # Hawaiian okina, typed accents
    r"\x{2000}-\x{27FF}"  # punctuation, currency, letter-like, numbers, arrows, mathematics, boxes, shapes, dingbats
    r"\x{2900}-\x{2BFF}\x{2E00}-\x{2E7F}"
    r"\x{FE00}-\x{FE0F}\x{FEFF}"  # variation selectors, byte order mark
    r"\x{1F000}-\x{1FBFF}\x{E0020}-\x{E007F}"  # emoji, cards, enclosed letters, flags' tags
)
# Accented letters of words and names that English took over (café, jalapeño, naïve, façade, smörgåsbord, São Paulo).
# Without the Latin-1 letters it never borrows: ß ð þ ý ÿ õ ì ò ù. Nothing of Latin Extended-A and -B but œ: the paper
# takes these blocks for a sign of other languages too.
_ENGLISH = "ÀÁÂÃÄÅÆÇÈÉÊËÍÎÏÑÓÔÖØÚÛÜŒàáâãäåæçèéêëíîïñóôöøúûüœ"
_CHINESE = (
    r"\p{Han}\x{20000}-\x{33FFF}\x{E0100}-\x{E01EF}"  # with extensions that RE2 may not know yet, and their variants
    r"\x{2E80}-\x{3030}\x{3036}-\x{303F}\x{30FB}"  # radicals, CJK punctuation; not the kana repeat marks
    r"\x{3100}-\x{312F}\x{31A0}-\x{31EF}"  # bopomofo, strokes
    r"\x{3220}-\x{325F}\x{3280}-\x{32CF}\x{3358}-\x{33FF}"  # enclosed Han, square units; not hangul and kana
    r"\x{FE10}-\x{FE1F}\x{FE30}-\x{FE6F}\x{FF01}-\x{FF65}\x{FFE0}-\x{FFEE}"  # vertical and full-width forms
)
# A basic Greek letter on its own is a sign of science or of a product (α particle, β-carotene, Δt, Σ); two are a word.
_GREEK_WORD_OR_SIGN = r"(\p{Greek}{2,})|[Α-Ωα-ω]"
_LETTER = r"\p{Latin}"
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
# Traditional and older Chinese prints write these too, whatever the character sets say.
ALSO_CHINESE = "裏説絶啓峯廻衆顔姉瑠栃栢碁粧兎呑噛鮎咲凪"


class Language(Filter):
    """Keeps captions written in the kept languages.

    Scores. `other_chars`: characters that none of the kept languages uses (int32). With a detector also `detected`, the
    most likely language, and `foreign` in [-1, 1]: probability of the best language that is not kept minus that of
    the kept ones (float32); both null where no detector judged. It judges captions without Han, kana and hangul that
    have at least `min_letters` Latin letters; "zh" is detected from the characters. Nothing is judged against a caption
    without a detector's verdict.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"max_other_chars", "max_foreign"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"other_chars": (0, 256), "foreign": (-1, 1)}

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    # Written `keep` in pipelines.yaml; the attribute cannot have the name of the method.
    languages: tuple[Kept, ...] = Field(("en", "zh"), alias="keep", min_length=1)
    detector: DetectorName = "fasttext"
    min_letters: int = Field(20, ge=1)
    max_other_chars: int = Field(0, ge=0)
    max_foreign: float = Field(0.3, ge=-1, le=1)

    @field_validator("languages")
    @classmethod
    def _sorted(cls, languages: tuple[Kept, ...]) -> tuple[Kept, ...]:
        return tuple(sorted(set(languages)))

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        judged = {} if self.detector == "none" else {"detected": pa.string(), "foreign": pa.float32()}
        return {"other_chars": pa.int32(), **judged}

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), **detector_fingerprint(self.detector)}

    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Language:
        """Loads the detector, which is kept for the life of the process; RuleError where it is not installed."""
        load_detector(self.detector)
        return self

    def score(self, samples: pa.Table) -> dict[str, pa.Array]:
        captions = samples["caption"].combine_chunks()
        scores = {"other_chars": _count_others(captions, self.languages)}
        detector = load_detector(self.detector)
        if detector is None:
            return scores
        cjk = pc.match_substring_regex(captions, _CJK)
        enough = pc.greater_equal(pc.count_substring_regex(captions, _LETTER), self.min_letters)
        asked = pc.fill_null(pc.and_(enough, pc.invert(cjk)), False)
        verdicts = detector.judge(captions.filter(asked).to_pylist(), self.languages)
        chinese = pc.and_(pc.match_substring_regex(captions, r"\p{Han}"), pc.equal(scores["other_chars"], 0))
        detected = pc.if_else(pc.fill_null(chinese, False), pa.scalar("zh"), pa.scalar(None, pa.string()))
        foreign = pa.nulls(len(captions), pa.float32())
        if verdicts:
            labels = pa.array([found and found[0] for found in verdicts], pa.string())
            margins = pa.array([found and found[1] for found in verdicts], pa.float32())
            detected = pc.replace_with_mask(detected, asked, labels)
            foreign = pc.replace_with_mask(foreign, asked, margins)
        return {**scores, "detected": detected, "foreign": foreign}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        written = pc.less_equal(scores["other_chars"], self.max_other_chars)
        if self.detector == "none":
            return written.combine_chunks()
        spoken = pc.fill_null(pc.less_equal(scores["foreign"], self.max_foreign), True)
        return pc.and_(written, spoken).combine_chunks()


def _count_others(captions: pa.Array, languages: tuple[Kept, ...]) -> pa.Array:
    """Characters that none of the languages uses. Letters and their combining accents are composed (NFC) first.

    Greek letters that stand alone are left out.
    """
    others = _other_class(languages)
    foreign = pc.fill_null(pc.match_substring_regex(captions, others), False)
    counts = pc.if_else(pc.is_null(captions), pa.scalar(None, pa.int32()), pa.scalar(0, pa.int32()))
    suspects = captions.filter(foreign)
    if len(suspects) == 0:
        return counts
    composed = pc.utf8_normalize(suspects, form="NFC")
    texts = pc.replace_substring_regex(composed, _GREEK_WORD_OR_SIGN, r"\1")
    return pc.replace_with_mask(counts, foreign, pc.count_substring_regex(texts, others).cast(pa.int32()))


@lru_cache(maxsize=4)
def _other_class(languages: tuple[Kept, ...]) -> str:
    allowed = _SHARED
    if "en" in languages:
        allowed += _ENGLISH
    if "zh" not in languages:
        return f"[^{allowed}]"
    return f"[^{allowed}{_CHINESE}]|[{japanese_characters()}]"


@lru_cache(maxsize=1)
def japanese_characters() -> str:
    """Kanji that only Japanese uses (shortened forms such as those of shop, station and sell, and kanji made in Japan).

    Those among the 2,965 everyday kanji of JIS X 0208 that the character sets of neither mainland China (GB 2312) nor
    Taiwan (Big5) have, less the few that older Chinese print uses. About a third of short kanji-only Japanese texts
    holds one; in Chinese they are all but absent.
    """

    def encoded(character: str, charset: str) -> bytes:
        return character.encode(charset, errors="ignore")

    return "".join(
        kanji
        for kanji in map(chr, range(0x4E00, 0xA000))
        if 0xB0 <= next(iter(encoded(kanji, "euc_jp")), 0) <= 0xCF  # rows of level 1, the everyday ones
        and len(encoded(kanji, "euc_jp")) == 2
        and not encoded(kanji, "gb2312")
        and not encoded(kanji, "big5")
        and kanji not in ALSO_CHINESE
    )
