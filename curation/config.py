"""`pipelines.yaml` -> checked profiles.

The one decision: the file is read once with the line of every key, and every error in it is reported at once, with its
line and the nearest known name. What this module gives back is complete: later code never checks a setting again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from curation import ledger
from curation.profile import Profile, Settings
from curation.yaml_lines import Key, Lines, YamlProblem, read_yaml
from filters.base import MAPPERS, Filter, Mapper, UnknownRule, load_filter, load_mapper
from shards.globs import is_pattern

Model = TypeVar("Model", bound=BaseModel)
# Reasons that are no filter's name.
RESERVED = ("unreadable", "fetch", *MAPPERS)


class ConfigError(Exception):
    """Everything that is wrong with the configuration, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass
class Pipelines:
    """A read `pipelines.yaml`: its profiles are checked when asked for."""

    path: Path
    data: dict[str, Any]
    lines: Lines
    problems: list[str] = field(default_factory=list)
    # The top-level `patterns`, once checked: what the mapper of that name gets where a profile gives it no rules.
    pattern_rules: Any = None

    @property
    def names(self) -> list[str]:
        profiles = self.data.get("profiles")
        return [str(name) for name in profiles] if isinstance(profiles, dict) else []

    def profile(self, name: str | None, overrides: Sequence[str] = ()) -> Profile:
        """One checked profile; None takes the only one there is. Raises `ConfigError`."""
        if self.problems:
            raise ConfigError(self.problems)
        if name is None:
            if len(self.names) != 1:
                raise ConfigError([f"{self.path}: name a profile: {', '.join(self.names)}"])
            name = self.names[0]
        if name not in self.names:
            raise ConfigError([f"{self.path}: no profile is called {name!r}{_nearest(name, self.names)}"])
        checker = _Checker(self, name)
        profile = checker.check(overrides)
        if profile is None:
            raise ConfigError(checker.problems)
        return profile

    def validate(self) -> dict[str, Profile]:
        """All profiles. Raises `ConfigError` with every problem of the file."""
        problems, profiles = list(self.problems), {}
        for name in self.names:
            checker = _Checker(self, name)
            profile = checker.check(())
            problems += checker.problems
            if profile is not None:
                profiles[name] = profile
        if problems:
            raise ConfigError(problems)
        return profiles


def load(path: str | Path) -> Pipelines:
    """Reads the file. Raises `ConfigError` where there is none or it is no YAML mapping."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError([f"{path}: cannot be read ({reason}); name the file with --config"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 (byte {error.start}): save the file as UTF-8"]) from error
    try:
        data, lines, duplicates = read_yaml(text)
    except (yaml.YAMLError, YamlProblem, ValueError, TypeError, AttributeError) as error:
        # PyYAML itself raises ValueError and others on dates and numbers that cannot be.
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {what}"]) from error
    if not isinstance(data, dict) or not isinstance(data.get("profiles"), dict) or not data["profiles"]:
        raise ConfigError([f"{path}:1: needs a mapping `profiles:` with at least one profile"])
    pipelines = Pipelines(path, data, lines)
    for key_path in _odd_keys(data):
        dotted = ".".join(map(str, key_path))
        pipelines.problems.append(f"{path}:{lines.of(key_path)}: {dotted}: write the key {key_path[-1]!r} in quotes")
    if pipelines.problems:
        raise ConfigError(pipelines.problems)  # nothing in the file can be named before its keys are
    known = ["profiles", "patterns"]
    for key in data:
        if key not in known and not str(key).startswith("x-"):
            pipelines.problems.append(f"{path}:{lines.of((key,))}: unknown key {key!r}{_nearest(str(key), known)}")
    if "patterns" in data:
        patterns, problems = _validated(load_mapper("patterns"), {"rules": data["patterns"]})
        pipelines.pattern_rules = data["patterns"] if patterns is not None else None
        for loc, message in problems:
            at = ("patterns", *loc[1:])
            pipelines.problems.append(f"{path}:{lines.of(at)}: {'.'.join(map(str, at))}: {message}")
    for where, line in duplicates:
        dotted = ".".join(map(str, where))
        pipelines.problems.append(f"{path}:{line}: {dotted} stands twice: the later would silently win")
    return pipelines


def _odd_keys(value: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
    """Paths of keys that YAML reads as something else than text (1, no, 2020-01-01)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield (*path, str(key))
            else:
                yield from _odd_keys(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _odd_keys(item, (*path, index))


class _Checker:
    """Checks one profile and collects its problems."""

    def __init__(self, pipelines: Pipelines, name: str) -> None:
        self.pipelines = pipelines
        self.name = name
        self.problems: list[str] = []
        self.overridden: set[tuple[Key, ...]] = set()

    def say(self, where: tuple[Key, ...], message: str) -> None:
        dotted = ".".join(map(str, where))
        if any(where[: len(path)] == path or path[: len(where)] == where for path in self.overridden):
            self.problems.append(f"--set: {self.name}{'.' if dotted else ''}{dotted}: {message}")
            return
        line = self.pipelines.lines.of(("profiles", self.name, *where))
        self.problems.append(f"{self.pipelines.path}:{line}: {self.name}{'.' if dotted else ''}{dotted}: {message}")

    def check(self, overrides: Sequence[str]) -> Profile | None:
        raw = self.pipelines.data["profiles"][self.name]
        if not isinstance(raw, dict):
            self.say((), "must be a mapping with `input`, `filters`, ...")
            return None
        if not self.name.replace("_", "").replace("-", "").isalnum():
            self.say((), "a profile's name is letters, digits, - and _ : it becomes a folder")
        raw = self.override(json.loads(json.dumps(raw, default=str)), overrides)
        rest = {key: value for key, value in raw.items() if key not in ("mappers", "filters")}
        settings = self.model(Settings, rest, (), extra_known=("mappers", "filters"))
        if settings is not None and settings.download is not None:
            self.download(settings)
        mappers = tuple(self.mappers(raw.get("mappers", ["html", "patterns"])))
        filters = dict(self.filters(raw.get("filters")))
        if self.problems or settings is None:
            return None
        # Pixels come last whatever the file says: they are decoded for the survivors of all other filters only.
        ordered = dict(sorted(filters.items(), key=lambda item: "pixels" in item[1].needs))
        given = {key: getattr(settings, key) for key in settings.model_fields_set}
        return Profile(name=self.name, mappers=mappers, filters=ordered, **given)

    def download(self, settings: Settings) -> None:
        """A download fills the profile's input, so that must be a folder of what a download writes."""
        kind, path = settings.input.format, settings.input.path
        if kind != "img2dataset":
            self.say(("input", "format"), f"must be img2dataset, which is what `download` writes, not {kind}")
        if is_pattern(path) or path.rstrip("/").endswith(".tar"):
            self.say(("input", "path"), f"must be a plain folder: `download` writes its tars there, not {path!r}")

    def override(self, raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        for text in overrides:
            dotted, equals, value = text.partition("=")
            path = tuple(dotted.split("."))
            if not equals or not all(path):
                self.problems.append(f"--set {text}: must look like clip_score.min=0.31")
                continue
            filters = raw.get("filters")
            if isinstance(filters, dict) and path[0] in filters and path[0] not in Settings.model_fields:
                path = ("filters", *path)
            try:
                parsed = json.loads(json.dumps(read_yaml(value)[0], default=str))
            except (yaml.YAMLError, YamlProblem, ValueError, TypeError, AttributeError):
                self.problems.append(f"--set {text[:80]}: the value is not valid YAML")
                continue
            node: Any = raw
            for key in path[:-1]:
                if node.get(key) is None:
                    node[key] = {}
                node = node[key]
                if not isinstance(node, dict):
                    self.problems.append(f"--set {text}: {key} is not a mapping")
                    break
            else:
                node[path[-1]] = parsed
                self.overridden.add(path)
        return raw

    def mappers(self, raw: Any) -> Iterator[Mapper]:
        if not isinstance(raw, list):
            self.say(("mappers",), "must be a list, such as [html, patterns]")
            return
        for index, entry in enumerate(raw):
            where: tuple[Key, ...] = ("mappers", index)
            if isinstance(entry, dict) and len(entry) == 1:
                ((name, fields),) = entry.items()
                where = (*where, name)
            else:
                name, fields = entry, {}
            if not isinstance(name, str):
                self.say(where, "must be a mapper's name, or `name: {settings}`")
                continue
            try:
                kind = load_mapper(name)
            except UnknownRule as error:
                self.say(where, f"{error}{_nearest(name, error.known)}")
                continue
            shared = self.pipelines.pattern_rules
            if kind.name == "patterns" and shared is not None and isinstance(fields or {}, dict):
                fields = {"rules": shared, **(fields or {})}
            mapper = self.model(kind, fields, where)
            if mapper is not None:
                yield mapper

    def filters(self, raw: Any) -> Iterator[tuple[str, Filter]]:
        if not isinstance(raw, dict) or not raw:
            self.say(("filters",) if raw is not None else (), "needs `filters:` with at least one filter")
            return
        taken = {*RESERVED, *ledger.BASE.names, *ledger.VERDICT.names}
        for label, fields in raw.items():
            where = ("filters", label)
            name = label
            if isinstance(fields, dict) and "filter" in fields:
                # `punsafe: {filter: column, column: punsafe, max: 0.5}`: the same filter under a label of its own.
                name, fields = fields["filter"], {key: value for key, value in fields.items() if key != "filter"}
            if not str(label).isidentifier():
                self.say(where, "a filter's label is letters, digits and _ : it becomes a column of the ledger")
                continue
            try:
                kind = load_filter(str(name))
            except UnknownRule as error:
                self.say(where, f"{error}{_nearest(str(name), error.known)}")
                continue
            if label in taken:
                self.say(
                    where, f"{label!r} already means something in the ledger: call it otherwise, with `filter: {name}`"
                )
                continue
            rule = self.model(kind, fields, where)
            if rule is None:
                continue
            columns = {f"{label}_{score}" for score in rule.scores}
            if columns & taken:
                self.say(where, f"its ledger column {min(columns & taken)!r} is taken: give the filter another label")
                continue
            taken |= columns
            yield str(label), rule

    def model(
        self, kind: type[Model], fields: Any, where: tuple[Key, ...], extra_known: tuple[str, ...] = ()
    ) -> Model | None:
        fields = {} if fields is None else fields
        if not isinstance(fields, dict):
            self.say(where, f"must be a mapping of settings, not {json.dumps(fields)}")
            return None
        model, problems = _validated(kind, fields, extra_known)
        for path, message in problems:
            self.say((*where, *path), message)
        return model


def _validated(
    kind: type[Model], fields: dict[str, Any], extra_known: tuple[str, ...] = ()
) -> tuple[Model | None, list[tuple[tuple[Key, ...], str]]]:
    """The model, or None and what is wrong, as (path below `fields`, message)."""
    try:
        return kind.model_validate(fields), []
    except ValidationError as error:
        return None, [
            (_visible(problem["loc"], fields), _explain(kind, problem, extra_known)) for problem in error.errors()
        ]


def _visible(loc: tuple[int | str, ...], fields: Any) -> tuple[Key, ...]:
    """The part of pydantic's location that stands in the file (it also names union branches)."""
    path: list[Key] = []
    for key in loc:
        if isinstance(fields, Mapping) and key in fields:
            fields = fields[str(key)]
        elif isinstance(fields, list) and isinstance(key, int) and key < len(fields):
            fields = fields[key]
        elif not path or key != loc[-1]:
            if isinstance(key, str) and len(loc) == 1:
                path.append(key)
            continue
        path.append(key)
    return tuple(path) or loc[:1]


def _explain(kind: type[BaseModel], problem: Any, extra_known: tuple[str, ...]) -> str:
    """pydantic's message in our words: unknown keys get the nearest match, values are shown."""
    if problem["type"] == "extra_forbidden":
        model: Any = kind
        for key in problem["loc"][:-1]:
            if isinstance(key, str):  # an index into a list keeps to the list's model
                model = (
                    _inner_model(model.model_fields[key].annotation) if model and key in model.model_fields else None
                )
        known = [*model.model_fields, *(extra_known if model is kind else ())] if model is not None else []
        return f"unknown key{_nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return "is required and has no default"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    shown = json.dumps(problem["input"], ensure_ascii=False, default=str)
    return f"{problem['msg']}, not {shown if len(shown) < 60 else shown[:57] + '...'}"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model in a field's type: itself, or inside a tuple, a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _inner_model(part)) is not None), None)


def _nearest(name: str, known: Sequence[str]) -> str:
    """' (did you mean X?)', or ' (known: ...)' where nothing is near."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f" (did you mean {match[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""
