"""What a mapper and a filter are, and the registry that finds them by name.

The one decision behind this module: scoring and deciding are apart. `score` is expensive and never looks at a
threshold; `keep` is cheap, pure, and works on scores read from a ledger years later.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

Need = Literal["caption", "header", "pixels", "columns"]


class Rule(BaseModel):
    """What mappers and filters share: a frozen model whose fields are written in `pipelines.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[str]
    # Fields that only `keep` reads. Every other field changes the scores and so is part of the score fingerprint.
    thresholds: ClassVar[frozenset[str]] = frozenset()

    def fingerprint(self) -> dict[str, Any]:
        """What decides the scores: name, version and every field that is not a threshold (JSON types).

        Rules that read data of a library (emoji, ftfy, language models) or weights add their versions or hashes.
        """
        fields = self.model_dump(mode="json", exclude=set(self.thresholds))
        return {"name": self.name, "version": self.version, **fields}

    def check(self) -> None:
        """Raises `RuleError` for what can be seen cheaply before a run: a missing library, file or model."""


class Mapper(Rule):
    """Rewrites captions."""

    def rewrite(self, captions: pa.LargeStringArray) -> tuple[pa.LargeStringArray, dict[str, int]]:
        """Gives back the rewritten captions and hits per rule (rule name -> captions it changed or dropped).

        Same length as the input; idempotent; never raises on any text; null stays null. A null for a caption that was
        not null drops the pair, with the mapper's name as the reason.
        """
        raise NotImplementedError


class Scorer(Protocol):
    """What `Filter.setup` gives back: holds a model, if any, and scores tables."""

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]: ...


class Filter(Rule):
    """Gives every sample scores, then keeps or drops it by its thresholds."""

    # Fixed histogram range (low, high) of each numeric score, so that unit histograms can be summed.
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """What `score` reads; "pixels" moves the filter to the actor pool, after all others.

        caption: column `caption` (large_string, cleaned). header: `width`, `height` (int32, EXIF-corrected) and
        `format`. pixels: also `image` (large_binary). columns: the source's own columns, as `source.<name>`.
        """
        raise NotImplementedError

    @property
    def scores(self) -> dict[str, pa.DataType]:
        """Score columns by unprefixed name; the ledger prefixes them with the filter's label and `_`.

        A column `<score>_error` (string) says why `<score>` is null although the sample was scored.
        """
        raise NotImplementedError

    def columns_needed(self) -> tuple[str, ...]:
        """Names of the source's columns that `score` reads."""
        return ()

    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Scorer:
        """Model state lives in what this returns; called once a worker. Rules without state return themselves.

        device: a torch device name; batch_size: samples a forward pass, None for the filter's own default.
        """
        return self

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        """Scores every row. Arrays of `len(samples)` with the types of `scores`; a null input gives a null score."""
        raise NotImplementedError

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        """Decides from scores under their unprefixed names: true keeps, false drops, null was not scored."""
        raise NotImplementedError


class RuleError(ValueError):
    """A rule cannot do its work as configured (missing weights, unknown column): one line, says what to do."""


class UnknownRule(LookupError):
    """No mapper or filter has the given name; `known` lists those there are."""

    def __init__(self, message: str, known: list[str]) -> None:
        super().__init__(message)
        self.known = known


# Name -> "module:Class" of our own rules: nothing is imported before it is asked for, so `--help` stays quick.
MAPPERS = {"html": "filters.html:Html", "patterns": "filters.patterns:Patterns"}
FILTERS = {
    "aspect_ratio": "filters.aspect_ratio:AspectRatio",
    "min_size": "filters.min_size:MinSize",
    "clip_score": "filters.clip_score:ClipScore",
    "language": "filters.language:Language",
    "emoji": "filters.emoji:Emoji",
    "text_length": "filters.text_length:TextLength",
    "column": "filters.column:Column",
}


def load_mapper(name: str) -> type[Mapper]:
    """The mapper class of a registered name, an entry point `winnow_vl.mappers`, or a `module:Class`."""
    return _load(name, MAPPERS, "winnow_vl.mappers", Mapper)


def load_filter(name: str) -> type[Filter]:
    """The filter class of a registered name, an entry point `winnow_vl.filters`, or a `module:Class`."""
    return _load(name, FILTERS, "winnow_vl.filters", Filter)


def _load(name: str, own: Mapping[str, str], group: str, kind: type[Any]) -> type[Any]:
    plugins = {point.name: point.value for point in entry_points(group=group)}
    target = own.get(name) or plugins.get(name) or (name if ":" in name else None)
    if target is None:
        known = sorted({*own, *plugins})
        raise UnknownRule(f"no {kind.__name__.lower()} is called {name!r}", known)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownRule(f"{kind.__name__.lower()} {name!r} cannot be loaded from {target!r}: {error}", []) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UnknownRule(f"{target!r} is not a {kind.__name__}", [])
    return found
