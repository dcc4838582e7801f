"""What a mapper and a filter are, and the registry that finds them by name.

The one decision behind this module: scoring and deciding are apart. `score` is expensive and never looks at a
threshold; `keep` is cheap, pure, and works on scores read from a ledger years later.
"""

from __future__ import annotations

import importlib
import operator
import types
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, Protocol, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

Need = Literal["caption", "header", "pixels", "columns"]


class Rule(BaseModel):
    """What mappers and filters share: a frozen model whose fields are written in `pipelines.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[str]
    # Fields that only `keep` reads. Every other field changes the scores and so is part of the score fingerprint.
    thresholds: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers are numbers: pydantic would read `yes` as 1 and "3" as 3. An int still does for a float."""
        _refuse_lookalikes(cls.model_fields[info.field_name or ""].annotation, value)
        return value

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
    """No usable mapper or filter has the given name; `known` lists those there are, where another may be meant."""

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
    what = f"{kind.__name__.lower()} {name!r}"
    # Entry points are read from every package that is installed, 6 ms: only for names that are not our own.
    plugins = {} if name in own else {point.name: point.value for point in entry_points(group=group)}
    target = own.get(name) or plugins.get(name) or (name if ":" in name else None)
    if target is None:
        known = sorted({*own, *plugins})
        raise UnknownRule(f"no {kind.__name__.lower()} is called {name!r}", known)
    # An entry point may name extras in brackets, which play no part in loading it.
    module, _, attribute = target.partition("[")[0].strip().partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UnknownRule(f"{what} cannot be loaded: {target!r} must look like package.module:Class", [])
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise UnknownRule(f"{what} cannot be loaded from {target!r}: {_one_line(error)}", []) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UnknownRule(
            f"{what}: {target!r} is not a {kind.__name__}, a subclass of filters.base.{kind.__name__}", []
        )
    missing = _missing(found, kind)
    if missing:
        raise UnknownRule(f"{what}: {target!r} lacks {', '.join(missing)} (filters/base.py says what they are)", [])
    return found


def _missing(found: type[Any], kind: type[Any]) -> list[str]:
    """What a plug-in's class has yet to define, in words; a filter may leave scoring to what its `setup` returns."""
    missing = []
    for label in ("name", "version"):
        value = getattr(found, label, None)
        if not (isinstance(value, str) and value.strip()):
            missing.append(f"`{label}` (a non-empty string)")
    wanted = (("rewrite",),) if kind is Mapper else (("needs",), ("scores",), ("score", "setup"), ("keep",))
    bare = (names for names in wanted if all(getattr(found, name) is getattr(kind, name) for name in names))
    return [*missing, *(" or ".join(f"`{name}`" for name in names) for names in bare)]


def _refuse_lookalikes(annotation: Any, value: Any) -> None:
    """Raises pydantic's own error where a number is asked for and `value` is a bool or a text.

    It looks into unions, lists and tuples. A field that also takes texts or bools as such keeps them.
    """
    options = _options(annotation)
    number = next((option for option in options if option in (int, float)), None)
    if number is not None and isinstance(value, bool | str | bytes):
        others = [option for option in options if option not in (int, float, types.NoneType)]
        if not any(_takes(option, value) for option in others):
            raise PydanticKnownError("int_type" if number is int else "float_type")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for option in options:
            items = get_args(option)
            if get_origin(option) in (list, tuple, Sequence) and items:
                each = items[:1] * len(value) if len(items) == 1 or items[-1] is ... else items
                for item, one in zip(each, value, strict=False):  # a wrong length is pydantic's to say
                    _refuse_lookalikes(item, one)


def _options(annotation: Any) -> list[Any]:
    """The members of a union, with what `Annotated` adds left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _takes(option: Any, value: bool | str | bytes) -> bool:
    if get_origin(option) is Literal:
        return any(type(member) is type(value) and member == value for member in get_args(option))
    # A class of another kind (an enum, a date) may have its own reading of texts, but none has one of bools.
    return option in (Any, object, type(value)) or (isinstance(option, type) and not isinstance(value, bool))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
