"""Drops pairs whose caption does not match their image, by the cosine of a CLIP model: the paper's third rule.

The decision behind this module: the score is the plain cosine of the two embeddings, never a logit, so that it means
the same for every model with any scale or bias (SigLIP has both). It still belongs to its model: a threshold holds for
one data set and one model. Loading is in `clip_model.py`, the forward pass in `clip_scorer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from filters import clip_model
from filters.base import Filter, Need, Scorer
from filters.column import Missing, check_range, source_numbers, within

_MODEL = "ViT-B-32"
# With the planes of rare characters, which RE2 may not know as Han yet.
_HAN = r"[\p{Han}\x{20000}-\x{33FFF}]"


class Minimums(BaseModel):
    """A threshold for each language of the captions: one model's cosines may run higher in one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    en: float
    zh: float

    def __str__(self) -> str:
        return f"en {self.en}, zh {self.zh}"


class ClipScore(Filter):
    """Keeps pairs with `min` <= cosine <= `max`.

    min: one number, or one for each language (`{en: 0.30, zh: 0.26}`): a caption with a Han character is `zh`, any
    other `en`.

    model: a name of open_clip (`ViT-B-32`), the path of a model config (`*.json`), `hf-hub:<owner>/<name>` or
    `local-dir:<folder>`. pretrained: a tag of open_clip or the path of a weights file; it has a default for the default
    model only, and is unused with the last two kinds, which name their own weights.
    Chinese captions need a multilingual model. precision: `auto` is bf16 autocast on a GPU that has it, else fp32.
    column: a cosine that the source ships takes the place of the model; `missing` then decides where it is null.
    """

    name: ClassVar[str] = "clip_score"
    # Raise it when decoding, orientation, transparency or rounding change: scores do then.
    version: ClassVar[str] = "5"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min", "max", "missing"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"cosine": (-0.5, 1.0)}

    model: str = Field(default=_MODEL, min_length=1)
    pretrained: str = Field(default="laion2b_s34b_b79k", min_length=1)
    min: float | Minimums
    max: float | None = Field(default=None, ge=-1.0, le=1.0)
    column: str | None = Field(default=None, min_length=1)
    missing: Missing = "drop"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @field_validator("min", mode="before")
    @classmethod
    def _a_number_or_two(cls, value: Any) -> Any:
        """Said here in one line: of a union pydantic tells what is wrong with each of its members."""
        if isinstance(value, Mapping):
            odd = sorted(map(str, value.keys() ^ {"en", "zh"}))
            if odd:
                raise ValueError(f"needs a number for `en` and one for `zh`, and nothing else: see {', '.join(odd)}")
            wrong = [key for key, number in value.items() if not _is_cosine(number)]
            if wrong:
                raise ValueError(f"`{wrong[0]}` must be a number from -1 to 1, not {value[wrong[0]]!r}")
        elif isinstance(value, bool | str | bytes):
            raise PydanticKnownError("float_type")
        elif not isinstance(value, Minimums) and not _is_cosine(value):
            raise ValueError(f"must be a number from -1 to 1, or {{en: ..., zh: ...}}, not {value!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for low in self.minimums.values():
            check_range(low, self.max)
        given = self.model_fields_set & {"model", "pretrained", "precision"}
        if self.column is not None and given:
            raise ValueError(f"`column` takes the place of a model: leave out {' and '.join(sorted(given))}")
        if self.column is None and "missing" in self.model_fields_set:
            raise ValueError("`missing` is for `column` only: a model scores every pair")
        if self.model.startswith(clip_model.SCHEMES) and "pretrained" in given:
            raise ValueError(f"`pretrained` is not used with {self.model!r}, which names its own weights")
        own = self.model.replace("/", "-") == _MODEL or self.model.startswith(clip_model.SCHEMES)
        if not own and "pretrained" not in given:
            raise ValueError(f"model {self.model!r} needs `pretrained`: a tag of open_clip or the path of its weights")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"caption", "pixels"} if self.column is None else {"caption", "columns"})

    @property
    def minimums(self) -> dict[str, float]:
        """The threshold of each language; of all of them under `""` where there is but one."""
        return {"en": self.min.en, "zh": self.min.zh} if isinstance(self.min, Minimums) else {"": self.min}

    @property
    def scores(self) -> dict[str, pa.DataType]:
        """`cosine` (rounded to 1e-4, or as shipped), `truncated` (the model did not read the whole caption).

        `language` is there whether or not `min` asks for it: going from one number to two takes no new pass of CLIP.
        """
        if self.column is not None:
            return {"cosine": pa.float32(), "language": pa.string()}
        return {
            "cosine": pa.float32(),
            "truncated": pa.bool_(),
            "cosine_error": pa.string(),
            "language": pa.string(),
        }

    def columns_needed(self) -> tuple[str, ...]:
        return () if self.column is None else (self.column,)

    def fingerprint(self) -> dict[str, Any]:
        """Files count by their content, so it is the same wherever they lie; `RuleError` if one is missing."""
        same = {"name": self.name, "version": self.version}
        if self.column is not None:
            return {**same, "column": self.column}
        return {**same, **clip_model.identity(self.model, self.pretrained), "precision": self.precision}

    def check(self) -> None:
        """Raises `RuleError` for what can be seen without importing torch: libraries, files, the model's name."""
        if self.column is None:
            clip_model.check(self.model, self.pretrained)

    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Scorer:
        """Loads the model, unless `column` is set; batch_size: 32 on a CPU and 256 on a GPU by default."""
        if self.column is not None:
            return self
        from filters.clip_scorer import ClipScorer

        return ClipScorer(clip_model.load(self.model, self.pretrained, device), device, self.precision, batch_size)

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        """The shipped scores. With a model it is loaded for this one call: use what `setup` returns instead."""
        if self.column is None:
            return self.setup().score(samples)
        cosines = pc.cast(source_numbers(samples, self.column), pa.float32())
        return {"cosine": cosines, "language": languages_of(samples["caption"].combine_chunks())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        cosines = scores["cosine"].combine_chunks()
        if isinstance(self.min, Minimums):
            chinese = pc.fill_null(pc.equal(scores["language"].combine_chunks(), "zh"), False)
            kept = pc.if_else(chinese, within(cosines, self.min.zh, self.max), within(cosines, self.min.en, self.max))
        else:
            kept = within(cosines, self.min, self.max)
        return kept if self.column is None else pc.fill_null(kept, self.missing == "keep")


def languages_of(captions: pa.Array) -> pa.StringArray:
    """`zh` for a caption with a Han character, `en` for any other, null for none."""
    chinese = pc.match_substring_regex(captions, _HAN)
    return pc.if_else(chinese, pa.scalar("zh", pa.string()), pa.scalar("en", pa.string()))


def _is_cosine(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and -1 <= value <= 1
