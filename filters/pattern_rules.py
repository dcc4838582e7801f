"""What a rule of the mapper `patterns` is, and what makes it valid.

The one decision: a rule is data, a pattern in RE2 syntax with a replacement, so it can be written in `pipelines.yaml`,
runs over whole columns in linear time, and is checked when it is read, not when it meets its first caption.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Texts on which a pattern that matches the empty string shows itself: it inserts its replacement.
_PROBES = pa.array(["", "a", " ", "a b", "1.5", "A-1", "中文", "，", "é", "\n", "<a>"], pa.large_string())


class PatternRule(BaseModel):
    r"""One named rewriting: every match of `pattern` becomes `replace` (groups as \1 to \9).

    drop: a caption that matches is dropped instead. use: a built-in in place of a pattern; `ftfy` repairs text that was
    decoded with the wrong character set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    pattern: str | None = None
    replace: str = ""
    ignore_case: bool = False
    drop: bool = False
    use: Literal["ftfy"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.pattern is None) == (self.use is None):
            raise ValueError(f"rule {self.name!r}: give it either a `pattern` or `use: ftfy`")
        if self.use and (self.replace or self.drop or self.ignore_case):
            raise ValueError(f"rule {self.name!r}: `use: {self.use}` takes no other setting")
        if self.drop and self.replace:
            raise ValueError(f"rule {self.name!r}: a rule that drops the caption has no `replace`")
        if self.pattern is not None and (wrong := _wrong(self.regex, self.replace)):
            raise ValueError(f"rule {self.name!r}: {wrong}")
        return self

    @property
    def regex(self) -> str:
        """The pattern as RE2 takes it."""
        return f"(?i){self.pattern}" if self.ignore_case else f"{self.pattern}"


@lru_cache(maxsize=1024)  # every profile of a file has the same rules
def _wrong(regex: str, replace: str) -> str | None:
    """What makes a pattern, or its replacement, no good; None where nothing does."""
    try:
        marked = pc.replace_substring_regex(_PROBES, regex, "\x01")
    except pa.ArrowInvalid as error:
        return _explain(str(error))
    # A match of n characters makes a text n - 1 shorter, so only empty matches make it longer.
    if pc.any(pc.greater(pc.utf8_length(marked), pc.utf8_length(_PROBES))).as_py():
        return "the pattern matches the empty string, so it would match everywhere"
    try:
        pc.replace_substring_regex(_PROBES, regex, replace)
    except pa.ArrowInvalid as error:
        return f"replacement {replace!r} is wrong: {str(error).partition(': ')[2]}"
    return None


def _explain(error: str) -> str:
    """RE2's complaint in words that say what to do."""
    reason = error.removeprefix("Invalid regular expression: ")
    if "invalid perl operator: (?" in reason:
        return f"RE2 has no look-around and no atomic groups ({reason}): write the context into the pattern as a group"
    if "invalid escape sequence: \\" in reason and reason.rstrip()[-1:].isdigit():
        return f"RE2 has no backreferences ({reason}): write the repeated text out"
    return f"not a pattern that RE2 understands ({reason})"
