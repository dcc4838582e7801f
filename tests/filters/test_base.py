from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from filters.aspect_ratio import AspectRatio
from filters.base import FILTERS, MAPPERS, Filter, Rule, UnknownRule, load_filter, load_mapper

IMPORTS = """
import pyarrow as pa
from filters.base import Filter, Mapper
"""
GOOD = """
from typing import ClassVar

class Good(Filter):
    name: ClassVar[str] = "good"
    version: ClassVar[str] = "1"
    limit: float = 1.0

    @property
    def needs(self): return frozenset({"caption"})

    @property
    def scores(self): return {"value": pa.float32()}

    def setup(self, device="cpu", batch_size=None): return object()

    def keep(self, scores): return pa.array([], pa.bool_())

class Outer:
    Inner = Good
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module that can be imported for the time of the test; gives back its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(source: str) -> str:
        name = f"plugin_{tmp_path.name.replace('-', '_')}_{len(made)}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_our_filters_load(name: str) -> None:
    assert load_filter(name).name == name


@pytest.mark.parametrize("name", sorted(MAPPERS))
def test_our_mappers_load(name: str) -> None:
    assert load_mapper(name).name == name


def test_a_good_plug_in_loads(plugin: Any) -> None:
    module = plugin(IMPORTS + GOOD)
    kind = load_filter(f"{module}:Good")
    assert kind.name == "good"
    assert load_filter(f"{module}:Outer.Inner") is kind
    with pytest.raises(ValidationError, match="valid number"):
        kind.model_validate({"limit": True})


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(UnknownRule, match="no filter is called 'clip'") as caught:
        load_filter("clip")
    assert "clip_score" in caught.value.known


@pytest.mark.parametrize("name", [":", ":X", "a:", ".a:X", "..:X", "a b:X", "a:X Y", "a..b:X", "a:X.", "os:path:join"])
def test_malformed_names(name: str) -> None:
    for load in (load_filter, load_mapper):
        with pytest.raises(UnknownRule, match="must look like package.module:Class"):
            load(name)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def __getattr__(name): raise KeyError(name)", "KeyError: 'X'"),
        ("", "has no attribute 'X'"),
        ("X = 3", "is not a Filter"),
        ("class X: pass", "is not a Filter"),
        ("from filters.html import Html as X", "is not a Filter"),
    ],
)
def test_what_cannot_be_loaded_says_why_in_one_line(plugin: Any, source: str, why: str) -> None:
    with pytest.raises(UnknownRule) as caught:
        load_filter(f"{plugin(source)}:X")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.known == []


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        ("    pass", ["`name`", "`version`", "`needs`", "`scores`", "`score` or `setup`", "`keep`"]),
        ("    name: ClassVar[str] = ''\n    version: ClassVar[int] = 2", ["`name`", "`version`"]),
        ("    name: ClassVar[str] = 'x'\n    version: ClassVar[str] = '1'", ["`needs`", "`scores`"]),
    ],
)
def test_what_a_filter_lacks_is_named(plugin: Any, body: str, lacks: list[str]) -> None:
    source = f"from typing import ClassVar\n{IMPORTS}\nclass X(Filter):\n{body}\n"
    with pytest.raises(UnknownRule, match="lacks ") as caught:
        load_filter(f"{plugin(source)}:X")
    assert all(word in str(caught.value) for word in lacks)


def test_the_contracts_own_classes_are_no_rules() -> None:
    with pytest.raises(UnknownRule, match="lacks `name`"):
        load_filter("filters.base:Filter")
    with pytest.raises(UnknownRule, match=r"lacks .*`rewrite`"):
        load_mapper("filters.base:Mapper")


class Colour(Enum):
    RED = "red"


class Numbers(Rule):
    """A field of every kind that a plug-in may have."""

    name: ClassVar[str] = "numbers"
    version: ClassVar[str] = "1"

    whole: int = 0
    real: float = 0.0
    maybe: float | None = None
    bound: Annotated[int, Field(ge=0)] = 0
    pair: tuple[float, float] = (0.0, 0.0)
    many: tuple[int, ...] = ()
    some: list[float | None] = Field(default=[])
    named: int = Field(default=0, alias="count")
    either: int | str = 0
    auto: float | Literal["auto"] = 0.0
    switch: float | bool = 0.0
    flag: bool = False
    text: str = ""
    colour: Colour = Colour.RED
    words: tuple[str, ...] = ()


@pytest.mark.parametrize("lookalike", [True, False, "3", "3.5", "", b"3"])
@pytest.mark.parametrize(
    ("field", "wrap", "kind"),
    [
        ("whole", lambda x: x, "int_type"),
        ("real", lambda x: x, "float_type"),
        ("maybe", lambda x: x, "float_type"),
        ("bound", lambda x: x, "int_type"),
        ("pair", lambda x: [0.5, x], "float_type"),
        ("many", lambda x: [1, x], "int_type"),
        ("some", lambda x: [None, x], "float_type"),
        ("count", lambda x: x, "int_type"),
    ],
)
def test_lookalikes_of_numbers_are_refused(field: str, wrap: Any, kind: str, lookalike: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Numbers.model_validate({field: wrap(lookalike)})
    (problem,) = caught.value.errors()
    assert problem["loc"] == (field,)
    assert problem["type"] == kind
    assert problem["msg"] in ("Input should be a valid number", "Input should be a valid integer")


@pytest.mark.parametrize(
    "fields",
    [
        {"real": 3, "maybe": 3, "pair": [1, 2.5], "many": [1, 2], "some": [1, None]},
        {"maybe": None, "either": "three", "auto": "auto", "switch": True},
        {"flag": True, "text": "3", "colour": "red", "words": ["a", "3"]},
    ],
)
def test_what_is_meant_is_taken(fields: dict[str, Any]) -> None:
    rule = Numbers.model_validate(fields)
    for name, value in fields.items():
        found = getattr(rule, name)
        assert (
            found.value if isinstance(found, Colour) else list(found) if isinstance(found, tuple) else found
        ) == value
        assert isinstance(found, bool) == isinstance(value, bool)


def test_a_literal_takes_its_own_words_alone() -> None:
    for value in ("3", True):
        with pytest.raises(ValidationError):
            Numbers.model_validate({"auto": value})
    with pytest.raises(ValidationError):
        Numbers.model_validate({"either": True})


@given(st.one_of(st.booleans(), st.text(), st.binary(), st.none(), st.lists(st.integers()), st.floats(), st.integers()))
@example(2**53 + 1)
def test_only_numbers_become_thresholds(value: Any) -> None:
    try:
        found = AspectRatio(max=value).max
    except ValidationError:
        return
    assert isinstance(value, int | float)
    assert not isinstance(value, bool)
    assert found == float(value)  # whole numbers beyond 2**53 come to the nearest float


OURS = [
    ("aspect_ratio", "max"),
    ("min_size", "short_side"),
    ("emoji", "max_count"),
    ("text_length", "min_words"),
    ("language", "min_letters"),
    ("clip_score", "min"),
    ("column", "min"),
]


@pytest.mark.parametrize("value", [True, False, "3"])
@pytest.mark.parametrize(("name", "field"), OURS)
def test_no_filter_of_ours_takes_a_lookalike(name: str, field: str, value: Any) -> None:
    kind: type[Filter] = load_filter(name)
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({field: value})
    wrong = {problem["loc"]: problem["msg"] for problem in caught.value.errors()}
    assert wrong[field,].startswith("Input should be a valid ")
