"""What a run would do: its units, and whether the output folder is its own. Writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curation import manifests
from curation.estimate import estimate_lines, resource_lines, this_machine
from curation.profile import Fingerprints, Profile, digest
from curation.resources import Node
from curation.submitted import lost_input, lost_output
from curation.unit import describe
from curation.units import Unit, plan_units
from filters.base import RuleError
from shards.storage import Storage

# Raised whenever older releases' folders can no longer be read or continued.
RUN_VERSION = 2


class RunError(Exception):
    """The run cannot start, or did not end whole: one line."""


class OtherVersion(RunError):
    """The folder was written by another release."""


@dataclass
class Plan:
    """What a run would do. `units`: all of the input, in its order; `done`: ids of those already committed.

    `first`: how many of them, from the first on, this run is limited to. `gone`: committed units that are no longer in
    the input. `other_input`: the folder was last used with another list of units, whose files may lie there.
    """

    profile: Profile
    prints: Fingerprints
    input: Storage
    output: Storage
    units: list[Unit]
    done: set[str] = field(default_factory=set)
    first: int | None = None
    notes: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    other_input: bool = False

    @property
    def pending(self) -> list[Unit]:
        return [unit for unit in self.units[: self.first] if unit.unit_id not in self.done]


def make_plan(
    profile: Profile,
    limit: int | None = None,
    replace: bool = False,
    folder: Callable[[Fingerprints], str] | None = None,
) -> Plan:
    """Lists the input, cuts it into units and compares with what the output holds; writes nothing.

    limit: whole units from the first on, until they hold this many samples. replace: committed units that are no longer
    in the input are in `Plan.gone` instead of an error. folder: the output, where it is not the run's own. Raises
    `StorageError`, `RunError` and `filters.base.RuleError`, each of one line.
    """
    lost = lost_input("input.path", profile.input.path) or lost_output("output.path", profile.output.path)
    if lost:
        raise RunError(lost)
    for label, rule in profile.rules():
        asked(label, rule.check)
    prints = profile.fingerprints()
    storage, units = plan_units(profile)
    doubles = [short for short, count in Counter(unit.short for unit in units).items() if count > 1]
    if doubles:
        raise RunError(f"{profile.input.path}: two units would be called {doubles[0]}: read the inputs as two profiles")
    output = Storage.open(folder(prints) if folder else profile.run_folder)
    output.must_answer()
    if f"{output.uri.rstrip('/')}/".startswith(f"{storage.uri.rstrip('/')}/"):
        raise RunError(
            f"{output.uri}: lies inside the input {storage.uri}, and would be read as input by the next run: "
            "set another output.path"
        )
    before = own(output, prints)
    notes = []
    if before and before["input"]["uri"] != storage.uri:
        notes = [f"{output.uri} was begun from {before['input']['uri']}: units are told apart by path and size alone"]
    if profile.download is not None:
        from curation.fetch.catalogue import unfinished

        notes += unfinished(storage)
    committed = manifests.committed(output)
    done = {unit_id for unit_id, decision in committed.items() if decision == prints.decision}
    gone = committed.keys() - {unit.unit_id for unit in units}
    if gone and not replace:
        raise RunError(
            f"{output.uri}: {len(gone)} of its {len(committed)} committed units are no longer in {profile.input.path}: "
            "the input changed; run with --replace to remove what came of them, set another output.path, or bring the "
            "input back"
        )
    other = before is not None and before["input"].get("sha256") != input_print(units)
    return Plan(
        profile,
        prints,
        storage,
        output,
        units,
        done - gone,
        whole_until((unit.samples or 0 for unit in units), limit),
        notes,
        gone,
        other,
    )


def input_print(units: list[Unit]) -> str:
    """Names a list of units: what run.json remembers of the input."""
    return digest([unit.unit_id for unit in units])


def asked(label: str, question: Callable[[], Any]) -> None:
    """Asks a rule whether it can work; whatever a plug-in raises is its `RuleError`, of one line."""
    try:
        question()
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(f"{label}: cannot be set up: {describe(error)}") from error


def whole_until(samples: Iterable[int], limit: int | None) -> int | None:
    """How many whole units, from the first on, hold `limit` samples; None without a limit: all."""
    if limit is None:
        return None
    held = 0
    for index, count in enumerate(samples):
        if held >= limit:
            return index
        held += count
    return None


def own(output: Storage, prints: Fingerprints) -> dict[str, Any] | None:
    """The folder's run.json; None where no run was here.

    A folder holds one configuration: `RunError` tells what differs.
    """
    if not output.exists("run.json"):
        if output.list("units") or output.list("ledger"):
            raise RunError(f"{output.uri}: holds units but no run.json: set another output.path, or delete the folder")
        return None
    try:
        before = read_run(output)
    except OtherVersion:
        raise
    except RunError:
        # Lost with the power, say. The unit manifests tell as much: it is written anew.
        if set(manifests.committed(output).values()) <= {prints.decision}:
            return None
        raise
    same = before["decision_fp"] == prints.decision
    told = differences({**before["identity"], "thresholds": before["thresholds"]}, _told(prints))
    if not same:
        changes = "; ".join(told[:6]) + (f"; and {len(told) - 6} more" if len(told) > 6 else "")
        raise RunError(
            f"{output.uri}: holds a run of another configuration ({changes or 'order of the filters'}): "
            "set another output.path, or delete the folder"
        )
    return before


def read_run(output: Storage) -> dict[str, Any]:
    """run.json of a run. Raises `RunError` where it is damaged, `OtherVersion` where another release wrote it."""
    try:
        record: dict[str, Any] = json.loads(output.read("run.json"))
        version = record.get("run_version", 1)
        if version != RUN_VERSION:
            raise OtherVersion(
                f"{output.uri}: written by another release (run_version {version}, this one reads {RUN_VERSION}): "
                "use that release, set another output.path, or delete the folder and run again"
            )
        if not (isinstance(record["identity"], dict) and isinstance(record["thresholds"], dict)):
            raise TypeError
        record["decision_fp"], record["input"]["uri"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{output.uri}/run.json: damaged: set another output.path, or delete the folder") from error
    return record


def _told(prints: Fingerprints) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps({**prints.identity, "thresholds": prints.thresholds}))
    return value


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """'emoji.max_count: 0 -> 1' for every leaf that differs."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line
            for key in keys
            for line in differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        ]
    if before == after:
        return []
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for index, (left, right) in enumerate(zip(before, after, strict=True))
            for line in differences(left, right, f"{path}[{index}]")
        ]
    return [f"{path.removeprefix('thresholds.')}: {_short(before)} -> {_short(after)}"]


def _short(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = [item["name"] for item in value]  # mappers: their names tell what was added or left out
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def plan_lines(
    plan: Plan,
    nodes: Sequence[Node] | None = None,
    pairs: float | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[str]:
    """The plan for people: input, units, filters in the order of execution, resources, output.

    nodes: the cluster to reckon with; None: this machine. pairs: adds an estimate for so many. rates: what is known
    better than measured (`estimate.parse_rate`).
    """
    profile, units = plan.profile, plan.units
    counts = [unit.samples for unit in units]
    samples = f"about {sum(count or 0 for count in counts):,} samples" if any(counts) else "samples unknown"
    files = {unit.path: unit.size for unit in units}
    size = sum(files.values()) / 2**20
    lines = [
        f"profile    {profile.name}",
        f"input      {plan.input.uri} ({profile.input.format}): {len(files):,} files, {size:,.1f} MiB",
        f"units      {len(units):,}, {samples}; {len(plan.pending):,} to do, {len(plan.done):,} done",
        f"mappers    {', '.join(mapper.name for mapper in profile.mappers) or 'none'}",
    ]
    for index, (label, rule) in enumerate(profile.filters.items()):
        where = "pixels, actor pool, survivors only" if label in profile.pixel else "read task"
        # A model's filter has defaults that its other settings make void: only what was set is shown.
        shown = rule.model_fields_set | {"min"} if label in profile.pixel else set(type(rule).model_fields)
        settings = [
            f"{name}={_plain(value)}"
            for name, value in rule.model_dump(mode="json", include=shown).items()
            if value is not None
        ]
        title = "filters" if index == 0 else ""
        lines.append(f"{title:<10} {index + 1}. {label} ({where}): {', '.join(settings)}")
    unit_bytes = max((unit.size for unit in units), default=None)
    nodes = nodes or this_machine()
    lines += _titled("resources", resource_lines(profile, nodes, unit_bytes))
    if pairs is not None:
        lines += _titled("estimate", estimate_lines(profile, nodes, pairs, rates or {}, _reached(plan), unit_bytes))
    lines.append(f"output     {plan.output.uri}")
    lines.append(f"decision   {plan.prints.decision[:16]} (scores {plan.prints.score[:16]})")
    lines += [f"note       {note}" for note in plan.notes]
    for unit in units[:5]:
        state = "done" if unit.unit_id in plan.done else "to do"
        count = "?" if unit.samples is None else f"{unit.samples:,}"
        lines.append(f"           {unit.short}  {unit.name}  {count} samples  {state}")
    if len(units) > 5:
        lines.append(f"           ... and {len(units) - 5:,} more")
    return lines


def _plain(value: Any) -> Any:
    """A setting's value; a mapping as the file has it: {en: 0.3, zh: 0.26}."""
    return f"{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}" if isinstance(value, dict) else value


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title if index == 0 else '':<10} {line}" for index, line in enumerate(lines)]


def _reached(plan: Plan) -> tuple[int, int] | None:
    """How many pairs the first pixel filter scored of those seen, in the units committed so far."""
    first = next(iter(plan.profile.pixel), None)
    if first is None or not plan.done:
        return None
    totals = manifests.sum_up(plan.output, plan.prints.decision, plan.done).totals
    return totals.scored.get(first, 0), totals.seen
