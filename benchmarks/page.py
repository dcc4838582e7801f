"""docs/benchmarks.md from the figures that the comparisons left: no number on the page was typed.

The words are in benchmarks/page.md, with `{{tables NAME}}`, `{{bars NAME}}`, `{{command NAME}}`, `{{versions NAME}}`,
`{{corpus NAME}}` and `{{machine}}` where figures go; the figures are benchmarks/results/NAME.json, which
`python -m benchmarks.NAME --json FILE` writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.shown import markdown, svg

ROOT = Path(__file__).parents[1]
WORDS, RESULTS = ROOT / "benchmarks/page.md", ROOT / "benchmarks/results"
_PLACE = re.compile(r"\{\{(\w+)(?: (\w+))?\}\}")


class PageError(Exception):
    """Words and figures do not fit together: one line."""


def render(words: str, results: dict[str, dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """The page, and its pictures by file name. results: by name of the benchmark."""
    pictures: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        what, name = match.groups()
        if what == "machine":
            return machine(results)
        if name not in results:
            raise PageError(
                f"{match[0]}: no results/{name}.json: python -m benchmarks.{name} --json or make bench writes it"
            )
        found = results[name]
        if what == "command":
            return f"`{found['command']}`"
        if what == "versions":
            return ", ".join(f"{package} {version}" for package, version in sorted(found["versions"].items()))
        if what == "corpus":
            return corpus(found["corpus"])
        if what == "tables":
            return "\n\n".join(markdown(shown) for shown in found["tables"])
        if what != "bars":
            raise PageError(f"{match[0]}: say tables, bars, command, versions, corpus or machine")
        lines = []
        for number, plot in enumerate(found["bars"]):
            file = f"{name}-{number}.svg"
            pictures[file] = svg(plot)
            lines.append(f"![{plot['title']}, {plot['unit']}](benchmarks/{file})")
        return "\n\n".join(lines)

    return _PLACE.sub(fill, words), pictures


def corpus(about: dict[str, Any]) -> str:
    """The samples that sides ran on."""
    size = f"{about['median_bytes'] / 1e3:.0f} KB in the middle and {about['mean_bytes'] / 1e3:.0f} KB on average"
    count = f"{about['samples']:,} samples of {about['images']:,} distinct images, {size}"
    return f"{count}, with {about['captions']:,} captions of the {about['source']}"


def machine(results: dict[str, dict[str, Any]]) -> str:
    """What all was measured on; several machines are told apart."""
    found: dict[str, list[str]] = {}
    for name, figures in results.items():
        about = figures["machine"]
        said = (
            f"{about['cores']} cores of {about['cpu']}, {about['memory_gib']} GiB, {about['system']}, "
            f"Python {about['python']}, CPU seconds counted by {about['counted_by']}"
        )
        found.setdefault(said, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{said} ({', '.join(names)})" for said, names in found.items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.page",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs/")
    options = parser.parse_args()
    try:
        results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
        page, pictures = render(WORDS.read_text(), results)
    except PageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    (options.docs / "benchmarks").mkdir(parents=True, exist_ok=True)
    (options.docs / "benchmarks.md").write_text(page)
    for file, drawn in pictures.items():
        (options.docs / "benchmarks" / file).write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
