"""What another threshold would keep, from the histograms of unit manifests: all that a dragged line needs to know.

The one decision: a line stops at the edges of the counted bins only, and of each edge is told how many samples it would
keep: one number where the bins decide it, else the fewest and the most. Nothing is interpolated.

Why it may be a range: `others` counts the samples that pass every other filter as far as those scored them. Where a
filter has several limits, some of these fail another one of it; where a limit before a pixel filter is loosened, what
comes through has no score there yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from curation.report import charts
from curation.report.charts import Threshold, thresholds_of
from curation.report.data import Shown, histograms_of
from filters.base import Filter, UnknownRule, load_filter

Rules = Mapping[str, Filter]


@dataclass(frozen=True)
class Steps:
    """Where a line may stop. at: bin edges; value: the threshold that is set there; low, high: samples kept there."""

    at: list[float]
    value: list[float]
    low: list[int]
    high: list[int]


def rules_of(record: Mapping[str, Any]) -> dict[str, Filter]:
    """The filters of a run.json by label, those that this installation knows by name, as they were.

    A run.json names no modules: own filters of a `module:Class` are left out, so no folder decides what is imported.
    """
    rules = {}
    for label, name in (record.get("filters") or {}).items():
        if ":" in str(name):
            continue
        try:
            kind = load_filter(str(name))
            if record["identity"]["filters"][label].get("version") != kind.version:
                continue  # another filter of that name
            rules[label] = kind.model_validate(_given(kind, record["profile"]["filters"][label]))
        except (UnknownRule, ValidationError, KeyError, AttributeError):  # not here, or its settings are others now
            continue
    return rules


def _given(kind: type[Filter], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the filter's defaults: some refuse each other even where they say nothing new."""
    return {
        name: value
        for name, value in fields.items()
        if name not in kind.model_fields or value != kind.model_fields[name].default
    }


def charts_of(shown: Shown, rules: Rules) -> list[dict[str, Any]]:
    """Every histogram with its thresholds, as the page draws them."""
    found = []
    for label in shown.labels:
        counted = histograms_of(shown, label)
        settings = shown.record["thresholds"].get(label) or {}
        for score, counts in counted.items():
            marks = thresholds_of(score, list(counted), settings if isinstance(settings, Mapping) else {})
            drawn = charts.histogram(f"{label} · {score}", counts, marks)
            if drawn is None:
                continue
            low, width = float(counts["low"]), (float(counts["high"]) - float(counts["low"])) / len(counts["all"])
            first = round((drawn.bars[0][0] - low) / width)
            last = min(round((drawn.bars[-1][1] - low) / width), len(counts["all"])) - 1
            found.append(
                {
                    "id": f"{label}_{score}",
                    "label": label,
                    "score": score,
                    "title": drawn.name,
                    "note": " ".join([f"{drawn.total:,} samples.", *charts.notes(drawn)]),
                    "log": charts.is_steep([bar[2] for bar in drawn.bars]),
                    "total": drawn.total,
                    "whole": drawn.whole_numbers,
                    "low": low,
                    "width": width,
                    "first": first,
                    "last": last,
                    "all": counts["all"],
                    "others": counts["others"],
                    "thresholds": [
                        _threshold(shown, rules, label, score, mark, counts, (first, last)) for mark in marks
                    ],
                }
            )
    return found


def _threshold(
    shown: Shown,
    rules: Rules,
    label: str,
    score: str,
    mark: Threshold,
    counts: Mapping[str, Any],
    view: tuple[int, int],
) -> dict[str, Any]:
    rule, name = rules.get(label), mark.name.replace(" ", ".")
    side = mark.side or (side_of(rule, score) if rule is not None else "")
    steps, why = None, None
    if rule is None:
        why = "no filter of its name and version is installed here (own ones need an entry point)"
    elif not side:
        why = "the filter does not tell which side of it passes"
    else:
        steps = steps_of(shown, rules, label, score, name, side, mark.value, counts, view)
    return {
        "id": f"{label}.{name}",
        "name": mark.name,
        "side": side,
        "value": mark.value,
        "steps": None if steps is None else steps.__dict__,
        "why": why,
    }


def side_of(rule: Filter, score: str) -> str:
    """Which side a filter with one score bounds: asked of the filter itself, at both ends of its histogram."""
    if list(rule.scores) != [score] or score not in rule.bins:
        return ""
    table = pa.table({score: pa.array(rule.bins[score], pa.float64()).cast(rule.scores[score])})
    return {(False, True): "min", (True, False): "max"}.get(tuple(rule.keep(table).to_pylist()), "")


def steps_of(
    shown: Shown,
    rules: Rules,
    label: str,
    score: str,
    name: str,
    side: str,
    current: float,
    counts: Mapping[str, Any],
    view: tuple[int, int],
) -> Steps:
    """The edges within the view at which a threshold can stand. name: the field, with `.<key>` of a mapping."""
    rule, kept = rules[label], shown.totals.kept
    others = np.array(counts["others"], dtype=np.int64)
    bins = len(others)
    edges = np.linspace(float(counts["low"]), float(counts["high"]), bins + 1)  # numpy's own, by which bins were made
    right = np.concatenate([[0], np.cumsum(others)])  # right[i]: samples left of edge i
    passing = right if side == "max" else right[-1] - right
    # Edges beside the threshold of the run, the same one where it stands on an edge itself.
    below, above = _beside(edges, current, side, rule.scores[score])
    # What is kept without a score, and errors without a word why, are in no bin or in the wrong one.
    errors = any(reason.endswith(":error") for reason in shown.totals.reasons)
    within = min(passing[below], passing[above]) <= kept <= max(passing[below], passing[above])
    sure = within and not errors and _alone(rule, name) and not _keeps_unscored(rule)
    later = any("pixels" in rules[other].needs if other in rules else True for other in _after(shown, label))
    steps: dict[float, tuple[float, int, int]] = {}
    for index in range(max(view[0], 1), min(view[1] + 1, bins - 1) + 1):
        value = _value(float(edges[index]), side, rule.scores[score])
        if not _allowed(rule, name, value):
            continue
        tighter = index >= above if side == "min" else index <= below
        here = int(passing[index])
        # What lies between the two lines, with the whole bin in which the run's threshold stands.
        start = below if (side == "min") == tighter else above
        between = abs(int(right[index] - right[start]))
        if sure and (tighter or not later):
            low = high = here
        elif tighter:
            low, high = max(kept - between, 0), kept
        else:
            low, high = kept, max(here, kept) if sure else kept + between
        steps[value] = (float(edges[index]), low, high)  # of edges that mean the same whole number, the last
    ordered = sorted(steps.items(), key=lambda item: item[1][0])
    return Steps(
        [at for _, (at, _, _) in ordered],
        [value for value, _ in ordered],
        [low for _, (_, low, _) in ordered],
        [high for _, (_, _, high) in ordered],
    )


def _after(shown: Shown, label: str) -> Sequence[str]:
    return shown.labels[shown.labels.index(label) + 1 :]


def _alone(rule: Filter, name: str) -> bool:
    """Whether this threshold is the only one by which the filter drops a sample that it scored."""
    if "." in name:
        return False
    # `max_foreign` of a filter that makes no score `foreign` decides nothing.
    of = {field: field.partition("_")[2] for field in rule.thresholds if field.startswith(("min_", "max_"))}
    telling = [field for field in rule.thresholds if of.get(field, "") in ("", *rule.scores)]
    set_ = [value for field in telling if (value := getattr(rule, field)) is not None]
    return sum(not isinstance(value, str) for value in set_) == 1


def _keeps_unscored(rule: Filter) -> bool:
    """Whether the filter keeps a sample that has no score."""
    nothing = pa.table({score: pa.nulls(1, kind) for score, kind in rule.scores.items()})
    return bool(rule.keep(nothing).to_pylist() == [True])


def _beside(
    edges: np.ndarray[Any, np.dtype[np.float64]], current: float, side: str, kind: pa.DataType
) -> tuple[int, int]:
    """Indices of the last edge that is no stricter for side "max" (looser for "min") than the threshold, and the next.

    Where an edge means just what the threshold means, both are that edge.
    """
    last = len(edges) - 1
    for index in range(1, last):
        if _value(float(edges[index]), side, kind) == _as(current, kind):
            return index, index
    above = int(np.searchsorted(edges, current, side="right"))
    return min(max(above - 1, 0), last), min(max(above, 0), last)


def _value(edge: float, side: str, kind: pa.DataType) -> float:
    """The threshold that parts the samples exactly as this bin edge does, in the type of the score."""
    if pa.types.is_integer(kind):
        above = math.ceil(edge - 1e-9)
        return above if side == "min" else above - 1
    if pa.types.is_float32(kind):
        at = np.float32(edge)
        if side == "min":
            at = at if float(at) >= edge else np.nextafter(at, np.float32(math.inf))
        else:
            at = at if float(at) < edge else np.nextafter(at, np.float32(-math.inf))
        return float(str(at))
    return edge if side == "min" else math.nextafter(edge, -math.inf)


def _as(value: float, kind: pa.DataType) -> float:
    """A threshold as the filter compares it: 0.7 of a float32 score is a float32."""
    return float(str(np.float32(value))) if pa.types.is_float32(kind) else value


def _allowed(rule: Filter, name: str, value: float) -> bool:
    """Whether the filter takes this threshold beside its others."""
    try:
        changed(rule, {name: value})
    except ValidationError:
        return False
    return True


def changed(rule: Filter, thresholds: Mapping[str, float]) -> Filter:
    """The filter with other thresholds, by field or `<field>.<key>`. Raises `ValidationError`, `KeyError`."""
    whole = rule.model_dump(mode="json")
    fields = _given(type(rule), whole)
    for name, value in thresholds.items():
        field, _, key = name.partition(".")
        before = fields.get(field, whole.get(field))
        if field not in rule.thresholds:
            raise KeyError(name)
        if key and not isinstance(before, Mapping):
            raise KeyError(name)
        fields[field] = {**dict(before or {}), key: value} if key else value
    return type(rule).model_validate(fields)
