"""Draws the funnel of a run as the picture of the README: `python -m benchmarks.funnel demo docs/funnel.svg`."""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

from curation.config import ConfigError, load
from curation.opened import open_run
from curation.plan import RunError
from curation.stats import Totals, funnel

WIDTH, ROW, LEFT, BAR = 760, 30, 150, 440


def steps(totals: Totals, labels: list[str]) -> list[tuple[str, int, int]]:
    """(name, dropped here, left after it), from what was listed to what was kept."""
    shape = funnel(totals, labels)
    drops = {"unreadable": sum(shape["unreadable"].values()), **shape["mappers"]}
    drops |= {label: numbers["dropped_first"] for label, numbers in shape["filters"].items()}
    found = [("seen", totals.listed - totals.seen, totals.seen)]
    if totals.listed > totals.seen:
        found.insert(0, ("listed", 0, totals.listed))
    for name, dropped in drops.items():
        found.append((name, dropped, found[-1][2] - dropped))
    return [*found, ("kept", 0, totals.kept)]


def draw(name: str, totals: Totals, labels: list[str]) -> str:
    """An SVG that reads on light and on dark pages."""
    rows = steps(totals, labels)
    height = ROW * len(rows) + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14" fill="#808890">',
        f"<title>Funnel of {escape(name)}: {totals.kept:,} of {totals.seen:,} pairs kept</title>",
    ]
    for index, (step, dropped, left) in enumerate(rows):
        y = 8 + index * ROW
        kept, lost = (BAR * count / max(totals.listed, 1) for count in (left, dropped))
        colour = "#2f9e6e" if step == "kept" else "#4c7bd9"
        lines.append(f'<text x="{LEFT - 12}" y="{y + 16}" text-anchor="end">{escape(step)}</text>')
        lines.append(f'<rect x="{LEFT}" y="{y}" width="{kept:.1f}" height="22" rx="3" fill="{colour}"/>')
        if dropped:
            lines.append(f'<rect x="{LEFT + kept:.1f}" y="{y}" width="{lost:.1f}" height="22" fill="#e0705a"/>')
        label = f"{left:,}" + (f"  (-{dropped:,})" if dropped else "")
        lines.append(f'<text x="{LEFT + BAR + 12}" y="{y + 16}">{label}</text>')
    retention = f"{totals.retention:.1%} kept" if totals.retention is not None else "nothing seen"
    told = f"{retention}; red: not fetched, or dropped first by this step"
    lines.append(f'<text x="{LEFT}" y="{height - 12}">{told}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.funnel demo funnel.svg")
    parser.add_argument("profile")
    parser.add_argument("file", type=Path)
    parser.add_argument("--config", default="pipelines.yaml")
    options = parser.parse_args()
    try:
        profile = load(options.config).profile(options.profile)
        totals = open_run(profile.run_folder).totals()
        options.file.write_text(draw(profile.name, totals, list(profile.filters)))
    except (ConfigError, RunError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
