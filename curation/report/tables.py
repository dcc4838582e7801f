"""Sections and tables: real ones, with captions and scopes, in a box of their own that scrolls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from curation.report.markup import Child, Markup, element, visible

# Characters of a cell; labels, rules and reasons are the user's own words.
CELL = 200


def section(name: str, heading: str, body: Child) -> Markup:
    return element(
        "section", element("h2", heading, id=f"{name}-heading"), body, id=name, aria_labelledby=f"{name}-heading"
    )


def prose(*children: Child) -> Markup:
    return element("p", *children)


def setting(value: Any) -> str:
    """A setting of a profile, as JSON."""
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def table(
    caption: str,
    heads_of_columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    heads: int = 1,
    marked: int | None = None,
    code: bool = False,
    kind: str = "",
) -> Markup:
    """A table that scrolls in its own box. The first column of a row heads it; the first `heads` columns are words.

    Cells: `Markup` as it is, text clipped, numbers to the right. marked: the row to point out. code: values in a
    fixed-width face. kind: a class.
    """
    columns = [
        element("th", name, scope="col", class_=None if index < heads else "number")
        for index, name in enumerate(heads_of_columns)
    ]
    lines = []
    for number, row in enumerate(rows):
        cells = [_cell(value, index, heads, code) for index, value in enumerate(row)]
        lines.append(element("tr", *cells, class_="marked" if number == marked else None))
    body = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *columns)),
        element("tbody", *lines),
        class_=kind or None,
    )
    # Focusable, so that the keyboard scrolls it too.
    return element("div", body, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cell(value: Any, index: int, heads: int, code: bool) -> Markup:
    shown: Child
    if isinstance(value, Markup):
        shown = value
    elif isinstance(value, int):
        shown = f"{value:,}"
    else:
        shown = visible(str(value), CELL)
    if index == 0:
        return element("th", shown, scope="row")
    kind = "code" if code else None if index < heads else "number"
    return element("td", shown, class_=kind)
