"""The charts of the report: inline SVG, drawn from the sums of unit manifests.

The one decision: a histogram shows the bins that were counted, whole or several as one, never a smoothed or sampled
curve; what lies outside the picture is told in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from curation.report.markup import Markup, element, visible

# Units of the drawing: about the pixels of a chart on a phone.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _LINE = 340, 150, 40, 8, 20, 15
_BARS = 64  # at most, so that each can be seen
# The picture shows the samples between these quantiles, and what lies within _REACH of their span beside them: a few
# far outliers would press all others into a corner.
_QUANTILES, _REACH = (0.01, 0.97), 0.75
# The largest bar against the middle one, from which on a linear axis hides the others.
_STEEP = 30


@dataclass(frozen=True)
class Threshold:
    """A number of `pipelines.yaml` on the axis of a score. side: what it bounds the kept samples from, or ""."""

    name: str
    value: float
    side: str = ""


@dataclass(frozen=True)
class Histogram:
    """What is drawn of a score. bars: (from, to, all samples, those that pass every other filter)."""

    name: str
    bars: list[tuple[float, float, int, int]]
    total: int
    others: int
    below: int  # samples left of the picture
    above: int
    whole_numbers: bool
    thresholds: list[Threshold]


def thresholds_of(score: str, scores: Sequence[str], settings: Mapping[str, Any]) -> list[Threshold]:
    """The thresholds of a filter that bound this score, by their names.

    `min_<score>` and `max_<score>`; `<score>` itself, whose side the name does not tell; `min` and `max` where the
    filter has one numeric score. A mapping (a threshold per language, say) gives one for every key.
    """
    found = []
    for name, value in settings.items():
        side, _, of = name.partition("_")
        if name == score:
            side = ""
        elif side not in ("min", "max") or (of or score) != score or (not of and len(scores) != 1):
            continue
        values = value.items() if isinstance(value, Mapping) else [("", value)]
        found += [
            Threshold(f"{name} {key}".strip(), float(number), side)
            for key, number in values
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        ]
    return found


def histogram(name: str, counted: Mapping[str, Any], thresholds: Sequence[Threshold]) -> Histogram | None:
    """The part of a counted histogram that can be seen; None where there is nothing to draw."""
    low, high = float(counted["low"]), float(counted["high"])
    all_, others = counted["all"], counted["others"]
    total = sum(all_)
    if not total or not 0 < high - low < math.inf:  # an own filter may name no real range
        return None
    width = (high - low) / len(all_)
    filled = [index for index, count in enumerate(all_) if count]
    whole = low.is_integer() and all(_holds_whole(low + index * width, width) for index in filled)
    first, last, span = _seen(all_, total)
    for threshold in thresholds:  # near ones are in the picture; far ones are told
        at = min(max(int((threshold.value - low) / width), 0), len(all_) - 1)
        if first - span <= at <= last + span:
            first, last = min(first, at - 1), max(last, at + 1)
    first, last = max(first - 1, 0), min(last + 1, len(all_) - 1)
    step = max(round(1 / width), 1) if whole and width < 1 else 1
    while (last + 1 - first + first % step) / step > _BARS:  # the first bar begins at a multiple
        step *= 2
    first -= first % step
    bars = [
        (
            low + index * width,
            min(low + (index + step) * width, high),
            sum(all_[index : index + step]),
            sum(others[index : index + step]),
        )
        for index in range(first, last + 1, step)
    ]
    below, above = sum(all_[:first]), sum(all_[first + len(bars) * step :])
    return Histogram(name, bars, total, sum(others), below, above, whole, list(thresholds))


def _holds_whole(edge: float, width: float) -> bool:
    """Whether a bin that whole numbers alone could fill."""
    return width >= 1 or abs(edge - round(edge)) < width / 2


def _seen(counts: Sequence[int], total: int) -> tuple[int, int, int]:
    """The first and the last bin of the picture, and bins of the span that most samples have."""
    filled = [index for index, count in enumerate(counts) if count]
    sums = list(accumulate(counts))
    low, high = (next(index for index, sum_ in enumerate(sums) if sum_ >= total * at) for at in _QUANTILES)
    span = max(high + 1 - low, 8)
    reach = int(span * _REACH)
    near = [index for index in filled if low - reach <= index <= high + reach]
    return near[0], near[-1], span


def draw_histogram(shown: Histogram, number: int) -> Markup:
    """The drawing. number: tells its title from those of other drawings on the page."""
    start, stop = shown.bars[0][0], shown.bars[-1][1]
    lines = [(threshold, _place(threshold, shown)) for threshold in shown.thresholds]
    inside = [(threshold, at) for threshold, at in lines if start <= at <= stop]
    top = _LINE * len(inside) + 8
    height = top + _HEIGHT + _BOTTOM
    most = max(bar[2] for bar in shown.bars)
    log = is_steep([bar[2] for bar in shown.bars])

    def x(value: float) -> float:
        return _LEFT + (value - start) / (stop - start) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        share = math.log1p(count) / math.log1p(most) if log else count / most
        return top + _HEIGHT * (1 - share)

    parts: list[Markup] = [element("title", title(shown), id=f"chart-{number}")]
    for count in _counts(most, log):
        parts.append(element("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(count), y2=y(count)))
        parts.append(element("text", _short(count), class_="tick", x=_LEFT - 4, y=y(count) + 4, text_anchor="end"))
    for left, right, all_, others in shown.bars:
        for count, kind in ((all_, "all"), (others, "others")):
            if count:
                box = {"x": x(left) + 0.3, "y": y(count), "width": max(x(right) - x(left) - 0.6, 0.4)}
                parts.append(element("rect", class_=kind, height=top + _HEIGHT - y(count), **box))
    parts.append(element("line", class_="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=top + _HEIGHT, y2=top + _HEIGHT))
    for value in _ticks(start, stop, shown.whole_numbers):
        at = x(value + 0.5) if _is_unit(shown) else x(value)
        if _LEFT <= at <= _WIDTH - _RIGHT:
            anchor = "end" if at > _WIDTH - 20 else "middle"
            parts.append(element("text", _number(value), class_="tick", x=at, y=height - 4, text_anchor=anchor))
    for row, (threshold, at) in enumerate(inside):
        here, up = x(at), 8.0 + _LINE * row
        anchor, aside = ("end", -5) if here > _WIDTH * 0.6 else ("start", 5)
        words = f"{visible(threshold.name, 24)} {_number(threshold.value)}"
        parts.append(element("line", class_="threshold", x1=here, x2=here, y1=up - 6, y2=top + _HEIGHT))
        parts.append(element("text", words, class_="mark", x=here + aside, y=up + 4, text_anchor=anchor))
    box_ = f"0 0 {_WIDTH} {height}"
    return element(
        "svg", *parts, class_="histogram", viewBox=box_, role="img", aria_labelledby=f"chart-{number}"
    )  # fmt: skip


def title(shown: Histogram) -> str:
    """What the drawing says, in a sentence."""
    bars = [bar for bar in shown.bars if bar[2]]
    told = f"Histogram of {visible(shown.name, 80)}: {shown.total:,} samples"
    if bars:
        fullest = max(bars, key=lambda bar: bar[2])
        told += f", most of them between {_number(fullest[0])} and {_number(fullest[1])} ({fullest[2]:,})"
    marks = ", ".join(f"{visible(mark.name, 40)} at {_number(mark.value)}" for mark in shown.thresholds)
    return f"{told}; thresholds: {marks}" if marks else told


def notes(shown: Histogram) -> list[str]:
    """What the drawing cannot show."""
    start, stop = shown.bars[0][0], shown.bars[-1][1]
    found = []
    for threshold in shown.thresholds:
        if not start <= _place(threshold, shown) <= stop:
            side = "left" if threshold.value < start else "right"
            name = visible(threshold.name, 40)
            found.append(f"{name} {_number(threshold.value)} lies to the {side} of the picture.")
    for count, side in ((shown.below, "left"), (shown.above, "right")):
        if count:
            found.append(f"{count:,} {'sample lies' if count == 1 else 'samples lie'} to the {side} of it.")
    if is_steep([bar[2] for bar in shown.bars]):
        found.append("Logarithmic scale of counts.")
    if not shown.thresholds:
        found.append("No threshold of this filter is named after this score.")
    return found


def bar(share: float, kind: str, mark: float | None = None, gone: float = 0.0) -> Markup:
    """A bar of a share in [0, 1] beside the number that says the same.

    mark: another share, drawn as a line. gone: what was dropped of a larger one, drawn behind it.
    """
    width = min(max(share, 0.0), 1.0) * 100
    parts = [element("rect", class_="track", width=100, height=8)]
    if gone > 0:
        behind = min(max(gone * 100, 0.4), 100 - width)
        parts.append(element("rect", class_="fill-dropped", x=width, y=2, width=max(behind, 0.0), height=4))
    if share > 0:
        parts.append(element("rect", class_=f"fill-{kind}", width=max(width, 0.4), height=8))
    if mark is not None:
        at = min(max(mark, 0.0), 1.0) * 100 - 0.4
        parts.append(element("rect", class_="aim", x=at, width=0.8, height=8))
    return element("svg", *parts, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def _place(threshold: Threshold, shown: Histogram) -> float:
    """Where its line stands: of whole numbers, a maximum is still kept, so the line stands behind it."""
    behind = threshold.side == "max" and shown.whole_numbers and float(threshold.value).is_integer()
    return threshold.value + 1 if behind else threshold.value


def _is_unit(shown: Histogram) -> bool:
    """Whether each bar is one whole number, which then stands under its middle."""
    return shown.whole_numbers and shown.bars[0][1] - shown.bars[0][0] == 1


def is_steep(counts: Sequence[int]) -> bool:
    filled = sorted(count for count in counts if count)
    return bool(filled) and filled[-1] > _STEEP * filled[len(filled) // 2]


def _counts(most: int, log: bool) -> list[int]:
    """Counts that get a line across."""
    if log:
        return [10**power for power in range(len(str(most))) if power % (1 + len(str(most)) // 5) == 0]
    step = _nice(most / 3)
    return [round(step * index) for index in range(1, 5) if round(step * index) and step * index <= most]


def _ticks(start: float, stop: float, whole: bool) -> list[float]:
    step = _nice((stop - start) / 5)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(start / step - 1e-9)
    return [round((first + index) * step, 10) for index in range(12) if (first + index) * step <= stop + 1e-9]


def _nice(about: float) -> float:
    """1, 2 or 5 times a power of ten, not below `about`."""
    power: float = 10.0 ** math.floor(math.log10(about)) if about > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * 0.999)


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def bins(shown: Histogram) -> list[tuple[str, int, int]]:
    """The drawing in numbers: (range, all, those that pass every other filter)."""
    if _is_unit(shown):
        return [(_number(left), all_, others) for left, _, all_, others in shown.bars]
    return [(f"{_number(left)} to {_number(right)}", all_, others) for left, right, all_, others in shown.bars]
