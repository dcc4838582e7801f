"""The comparison of two runs or decisions as HTML."""

from __future__ import annotations

from typing import Any

from curation.report import charts, data
from curation.report.compare import Comparison
from curation.report.data import Shown, count, share
from curation.report.markup import Child, Markup, element, join, visible
from curation.report.tables import prose, setting, table


def comparison_section(shown: Shown, comparison: Comparison) -> Markup:
    other = comparison.other
    parts: list[Child] = [
        prose(
            "Here: ",
            element("span", visible(shown.opened.output.uri, 200), class_="code"),
            f" (decision {shown.opened.decision[:16]}). There: ",
            element("span", visible(other.opened.output.uri, 200), class_="code"),
            f" (decision {other.opened.decision[:16]}).",
        ),
        *(prose(note) for note in comparison.notes),
        prose(_retentions(shown, other)),
        _settings("Thresholds that differ", comparison.settings, "The thresholds are the same."),
    ]
    if comparison.scoring:
        parts.append(prose("The scores themselves were made differently, so more than a threshold decides here:"))
        parts.append(_settings("What scores depend on", comparison.scoring, ""))
    halves = (element("div", _funnels(shown, other)), element("div", _flips(comparison)))
    parts.append(element("div", *halves, class_="beside"))
    return join(*parts)


def _retentions(shown: Shown, other: Shown) -> str:
    here, there = shown.totals.retention, other.totals.retention
    if here is None or there is None:
        return "One of them has seen nothing: there is no retention to compare."
    return f"Retention: {here:.2%} here, {there:.2%} there: {(here - there) * 100:+.2f} points."


def _settings(caption: str, settings: list[tuple[str, Any, Any]], none: str) -> Markup:
    if not settings:
        return prose(none)
    rows = [(name, setting(there), setting(here)) for name, there, here in settings[: data.ROWS]]
    more = [prose(f"Shown are {data.ROWS} of {len(settings):,}.")] if len(settings) > data.ROWS else []
    return join(table(caption, ("setting", "there", "here"), rows), *more)


def _funnels(shown: Shown, other: Shown) -> Markup:
    """Both funnels; a stage that only one of them has is empty in the other."""
    stages = [{stage.name: stage for stage in data.stages(each)} for each in (other, shown)]
    names = list(stages[1])
    for index, name in enumerate(stages[0]):  # a filter that only the other has: at its place there
        if name not in stages[1]:
            names.insert(min(index, len(names) - 1), name)
    rows = []
    for name in names:
        there, here = (each.get(name) for each in stages)
        numbers: list[Any] = []
        for stage in (there, here):
            numbers += ["–", "–"] if stage is None else [stage.dropped if stage.kind == "dropped" else "", stage.left]
        change = _change(here.left - there.left) if here is not None and there is not None else "–"
        rows.append((name, *numbers, change))
    heads = ("stage", "dropped there", "left there", "dropped here", "left here", "left: change")
    return table("Funnels side by side", heads, rows)


def _change(number: int) -> str:
    return f"{number:+,}".replace("-", "−") if number else "0"


def _flips(comparison: Comparison) -> Markup:
    flips = sorted(comparison.flips.items(), key=lambda item: (-item[1], str(item[0])))
    compared = f"{comparison.rows:,} samples of {count(comparison.units, 'unit')} compared by their ledgers"
    if not flips:
        return prose(f"No sample has another reason here than there ({compared}).")
    most = flips[0][1]
    rows = [
        (f"{before or 'kept'} → {after or 'kept'}", charts.bar(share(number, most), "left"), number)
        for (before, after), number in flips[: data.ROWS]
    ]
    total = sum(comparison.flips.values())
    more = [prose(f"Shown are {data.ROWS} of {len(flips):,} pairs.")] if len(flips) > data.ROWS else []
    return join(
        prose(
            f"{count(total, 'sample')} {'has' if total == 1 else 'have'} another reason here than there: newly kept "
            f"{comparison.gained:,}, no longer kept {comparison.lost:,} ({compared})."
        ),
        table(
            "Reason there → reason here",
            ("there → here", "of the most frequent", "samples"),
            rows,
            heads=2,
            kind="barred",
        ),
        *more,
    )
