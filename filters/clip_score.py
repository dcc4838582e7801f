"""Drops pairs whose caption does not match their image, by the cosine of a CLIP model: the paper's third rule.

The decision behind this module: the score is the plain cosine of the two embeddings, never a logit, so that it means
the same for every model with any scale or bias (SigLIP has both). It still belongs to its model: a threshold holds for
one data set and one model. Loading is in `clip_model.py`, the forward pass in `clip_scorer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from filters import clip_model
from filters.base import Filter, Need, Scorer
from filters.column import Missing, check_range, source_numbers, within

_MODEL = "ViT-B-32"


class ClipScore(Filter):
    """Keeps pairs with `min` <= cosine <= `max`.

    model: a name of open_clip (`ViT-B-32`), the path of a model config (`*.json`), `hf-hub:<owner>/<name>` or
    `local-dir:<folder>`. pretrained: a tag of open_clip or the path of a weights file; it has a default for the default
    model only, and is unused with the last two kinds, which name their own weights.
    Chinese captions need a multilingual model. precision: `auto` is bf16 autocast on a GPU that has it, else fp32.
    column: a cosine that the source ships takes the place of the model; `missing` then decides where it is null.
    """

    name: ClassVar[str] = "clip_score"
    # Raise it when decoding, orientation, transparency or rounding change: scores do then.
    version: ClassVar[str] = "2"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min", "max", "missing"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"cosine": (-0.5, 1.0)}

    model: str = Field(default=_MODEL, min_length=1)
    pretrained: str = Field(default="laion2b_s34b_b79k", min_length=1)
    min: float = Field(ge=-1.0, le=1.0)
    max: float | None = Field(default=None, ge=-1.0, le=1.0)
    column: str | None = Field(default=None, min_length=1)
    missing: Missing = "drop"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_range(self.min, self.max)
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
        return frozenset({"caption", "pixels"} if self.column is None else {"columns"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        """`cosine` (rounded to 1e-4, or as shipped), `truncated` (the model did not read the whole caption)."""
        if self.column is not None:
            return {"cosine": pa.float32()}
        return {"cosine": pa.float32(), "truncated": pa.bool_(), "cosine_error": pa.string()}

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
        return {"cosine": pc.cast(source_numbers(samples, self.column), pa.float32())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        kept = within(scores["cosine"].combine_chunks(), self.min, self.max)
        return kept if self.column is None else pc.fill_null(kept, self.missing == "keep")
