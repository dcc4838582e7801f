"""Mapper `patterns`: ordered, named rules that clean captions of what is not about the picture.

The one decision: rules run as Arrow kernels (RE2, linear time) over whole columns, and again over the captions that
they changed until nothing changes, since what one rule takes away can uncover the next one's prey. That makes the
mapper idempotent whatever the rules are: a caption that does not settle within a few passes is dropped and counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from filters import replacing
from filters.base import Mapper
from filters.pattern_defaults import DEFAULT_RULES
from filters.pattern_rules import PatternRule
from filters.pattern_words import AGENCY, EXTENSION, OPEN

__all__ = ["DEFAULT_RULES", "PatternRule", "Patterns"]

# Tails come in stacks (a price behind a code behind a credit). Real captions settle in four passes.
_MAX_PASSES = 10

# Placeholders that data sets put in the place of what they may not publish, as in CC12M, and what they stand for.
_PERSON = r"<(?:PERSON|PEOPLE|PER|NAME|person|name)>"
_OTHER_TAGS = {
    r"<(?:LOCATION|LOC|PLACE|GPE|location)>": "place",
    r"<(?:ORGANI[SZ]ATION|ORG|COMPANY|organization)>": "organization",
    r"<(?:DATE|date)>": "date",
    r" ?<(?:NUMBER|NUM|UNK|UNKNOWN|unk|URL|EMAIL|PHONE|USER|ID)>": "",
}
_SPECIAL_TAGS: Mapping[str, tuple[PatternRule, ...]] = {
    "keep": (),
    "drop": (PatternRule(name="special_tags", pattern="|".join([_PERSON, *_OTHER_TAGS]), drop=True),),
    "replace": tuple(
        PatternRule(name="special_tags", pattern=pattern, replace=word)
        for pattern, word in {_PERSON: "person", **_OTHER_TAGS}.items()
    ),
}

# Up to so many texts are taken one by one, by patterns that are compiled already.
_FEW = 1_000
# What a text must hold for a pattern that is slow to match: the slash of an address; of a file's name a digit, its
# extension, the word of a stock agency, or a hash that happens to have no digit; the bracket, sign or word of a credit.
_HOLDS = {
    "url": r"/|(?i:www\.)",
    "file_name": rf"(?i)[0-9]|{EXTENSION}|stock-|[a-f]{{32}}",
    "credit_in_brackets": OPEN,
    "credit_copyright": r"©|\([cC]\)|opyright|eserved",
    "credit_agency": AGENCY,
    "credit_by": r"(?i)by|courtesy",
    "credit_label": "[:©]",
    "credit_unmarked": "Photo|PHOTO|Picture|Image|Foto|Mandatory",
    "credit_chinese": "[图圖照摄攝文来來版]",
}
_GATES = {rule.regex: _HOLDS[rule.name] for rule in DEFAULT_RULES if rule.name in _HOLDS}

# Mojibake needs two neighbours outside ASCII, none from East Asia, or a lead byte whose U+00A0 became a space.
_MOJIBAKE = r"[\x{80}-\x{2FF}\x{2010}-\x{203A}\x{20AC}\x{2122}][\x{80}-\x{2FF}\x{2010}-\x{203A}\x{20AC}\x{2122}]|[ÃÂâ] "


class Patterns(Mapper):
    """Rewrites captions by `rules`, in order, to a fixed point.

    special_tags: what to do with `<PERSON>` and its like: drop the pair (null caption, the paper's way), replace the
    tag by a word ("person", "place", "organization", "date"; others vanish), or keep it. Run `html` first: a tag of
    HTML is no special tag. Hits: captions that a rule changed or dropped, by rule name, `special_tags` and `unsettled`.
    """

    name: ClassVar[str] = "patterns"
    version: ClassVar[str] = "1"

    rules: tuple[PatternRule, ...] = DEFAULT_RULES
    special_tags: Literal["drop", "replace", "keep"] = Field("drop")

    @field_validator("rules", mode="before")
    @classmethod
    def _built_in(cls, rules: Any) -> Any:
        """A name alone stands for the default rule of that name."""
        if not isinstance(rules, list | tuple):
            return rules
        known = {rule.name: rule for rule in DEFAULT_RULES}
        unknown = [rule for rule in rules if isinstance(rule, str) and rule not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"no built-in rule is called {unknown[0]!r} ({hint})")
        return tuple(known[rule] if isinstance(rule, str) else rule for rule in rules)

    @field_validator("rules")
    @classmethod
    def _unique(cls, rules: tuple[PatternRule, ...]) -> tuple[PatternRule, ...]:
        seen = {"special_tags", "unsettled"}
        for rule in rules:
            if rule.name in seen:
                raise ValueError(f"rule {rule.name!r}: the name is taken; every rule needs its own")
            seen.add(rule.name)
        return rules

    def fingerprint(self) -> dict[str, Any]:
        found = super().fingerprint()
        if any(rule.use == "ftfy" for rule in self.rules):
            import ftfy

            found["ftfy"] = ftfy.__version__
        return found

    def rewrite(self, captions: pa.LargeStringArray) -> tuple[pa.LargeStringArray, dict[str, int]]:
        rules = [*_SPECIAL_TAGS[self.special_tags], *self.rules]
        touched = {rule.name: np.zeros(len(captions), dtype=bool) for rule in rules}
        unsettled = np.zeros(len(captions), dtype=bool)
        result = captions
        rows = np.arange(len(captions))  # the captions still at work, by their place in the column
        for _ in range(_MAX_PASSES):
            before = result.take(pa.array(rows))
            after = before
            for rule in rules:
                after, changed = _apply(rule, after)
                touched[rule.name][rows[changed]] = True
            moved = _differs(before, after)
            if not moved.any():
                break
            rows = rows[moved]
            result = _put(result, rows, after.filter(pa.array(moved)))
        else:
            unsettled[rows] = True
            result = pc.if_else(pa.array(unsettled), pa.scalar(None, result.type), result)
        hits = {name: int(mask.sum()) for name, mask in touched.items()}
        return result, {**hits, "unsettled": int(unsettled.sum())}


def _apply(rule: PatternRule, texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The texts after one rule, and which it changed. Matching is much cheaper than replacing, so it goes first."""
    changed = _matching(rule, texts)
    if not changed.any():
        return texts, changed
    match = pa.array(changed)
    old = texts.filter(match)
    if rule.drop:
        new = pa.nulls(len(old), old.type)
    elif rule.use:
        new = _repair(old)
    elif len(old) <= _FEW:
        new = replacing.replace(old, rule.regex, rule.replace)
    else:
        new = pc.replace_substring_regex(old, rule.regex, rule.replace)
    changed[changed] = _differs(old, new)
    return pc.replace_with_mask(texts, match, new), changed


def _matching(rule: PatternRule, texts: pa.Array) -> np.ndarray:
    """Which texts a rule is for."""
    pattern = _MOJIBAKE if rule.use else rule.regex
    gate = _GATES.get(pattern)
    if gate is None or len(texts) <= _FEW:
        return _matches(texts, pattern)
    found = _matches(texts, gate)
    found[found] = _matches(texts.filter(pa.array(found)), pattern)
    return found


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    """Which texts a pattern matches; a null is not one of them."""
    if len(texts) <= _FEW:
        return replacing.matches(texts, pattern)
    return np.array(pc.fill_null(pc.match_substring_regex(texts, pattern), False))


def _differs(old: pa.Array, new: pa.Array) -> np.ndarray:
    """Where two columns differ; a text that became null differs, null stays null."""
    same = pc.fill_null(pc.equal(old, new), False)
    return np.asarray(pc.invert(pc.or_(same, pc.is_null(old))))


def _put(column: pa.Array, rows: np.ndarray, values: pa.Array) -> pa.Array:
    mask = np.zeros(len(column), dtype=bool)
    mask[rows] = True
    return pc.replace_with_mask(column, pa.array(mask), values)


def _repair(texts: pa.Array) -> pa.Array:
    """Undoes decoding with the wrong character set, and nothing else: quotes, widths and ligatures stay as they are."""
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return pa.array([ftfy.fix_text(text, config) for text in texts.to_pylist()], texts.type)
