"""Figures as people see them: tables in the terminal and in Markdown, bars as SVG. Plain data: JSON holds them."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.measure import say

WIDTH, ROW, LEFT, BAR = 820, 30, 290, 380
OURS, THEIRS = "#2f9e6e", "#4c7bd9"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, Any]:
    """A table of a benchmark, printed at once; what is given back goes into its JSON, under `tables`."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[column]) for row in cells) for column in range(len(head))]
    say(f"\n{title}")
    for row in cells:
        say("  " + "  ".join(_fill(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return {"title": title, "head": cells[0], "rows": cells[1:]}


def bars(title: str, unit: str, runs: Mapping[str, Sequence[float]], ours: Sequence[str]) -> dict[str, Any]:
    """Bars of a plot, with every run of each; goes into a benchmark's JSON, under `bars`. ours: names of our sides."""
    drawn = [{"name": name, "runs": list(found), "ours": name in ours} for name, found in runs.items()]
    return {"title": title, "unit": unit, "bars": drawn}


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _fill(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def markdown(shown: Mapping[str, Any]) -> str:
    """A table as GitHub shows it; its title above."""
    rows = [shown["head"], ["---"] * len(shown["head"]), *shown["rows"]]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"**{shown['title']}**", "", *lines])


def svg(plot: Mapping[str, Any]) -> str:
    """Bars to the median of their runs, each run a tick. Reads on light and on dark pages."""
    rows = plot["bars"]
    most = max(max(row["runs"]) for row in rows)
    height = ROW * len(rows) + 48
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="14" fill="#808890">',
            f"<title>{escape(plot['title'])}, {escape(plot['unit'])}</title>",
            *(line for number, row in enumerate(rows) for line in _row(number, row, most)),
            f'<text x="{LEFT}" y="{height - 14}">{escape(plot["title"])}: {escape(plot["unit"])}</text>',
            "</svg>",
            "",
        ]
    )


def _row(number: int, row: Mapping[str, Any], most: float) -> Iterator[str]:
    y = 8 + number * ROW
    middle = statistics.median(row["runs"])
    colour = OURS if row["ours"] else THEIRS
    yield f'<text x="{LEFT - 12}" y="{y + 16}" text-anchor="end">{escape(row["name"])}</text>'
    yield f'<rect x="{LEFT}" y="{y}" width="{BAR * middle / most:.1f}" height="22" rx="3" fill="{colour}"/>'
    for run in row["runs"]:
        x = LEFT + BAR * run / most
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 3}" y2="{y + 19}" stroke="#202428" stroke-opacity="0.55"/>'
    yield f'<text x="{LEFT + BAR + 12}" y="{y + 16}">{number_in_words(middle)}</text>'


def number_in_words(value: float) -> str:
    """A figure with three digits that say something: 8,420, 37.1, 0.98."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
