"""The pages as HTML: the list of runs, a run, a comparison, an error.

The one decision: a page is whole when it comes, drawn from the report's own sections, so that it is read before any
script runs and without one; scripts add what moves. A part that changes while a run goes on is a fragment with a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curation.dashboard.runs import DAMAGE, Look, Run
from curation.report import charts, paper, side_by_side
from curation.report.compare import Comparison
from curation.report.data import Shown, count, share
from curation.report.markup import Child, Markup, element, join, visible
from curation.report.page import head, made_with
from curation.report.sections import SECTIONS
from curation.report.tables import prose, section, table
from curation.unit import describe

# Sections of the report that a run's page shows as they are; its scores are drawn by the page itself.
_SECTIONS = {name: (heading, draw) for name, heading, draw in SECTIONS if name != "scores"}
SCRIPTS = ("live.js", "thresholds.js", "samples.js")


@dataclass(frozen=True)
class Listed:
    """A line of the list of runs: what was seen of it, or the line that says why nothing could be."""

    run: Run
    look: Look | None
    error: str | None = None


def runs_page(listed: Sequence[Listed], where: str) -> bytes:
    """The list of runs. where: the folders that were looked into."""
    body = [
        element("header", element("p", visible(where, 300), class_="over code"), element("h1", "Runs and decisions")),
        element("main", element("div", runs_fragment(listed), data_fragment="runs"), id="content"),
    ]
    return _html("Curation runs", body, ("live.js",), data_live="/live")


def runs_fragment(listed: Sequence[Listed]) -> Markup:
    rows = [_line_or_why(each) for each in listed]
    heads = ("run", "state", "units", "seen", "kept", "retention", "target", "paper", "samples/s")
    return table("Runs, each followed by its later decisions", heads, rows, heads=2, kind="runs")


def _line_or_why(listed: Listed) -> Sequence[object]:
    try:
        return _line(listed)
    except DAMAGE as error:  # numbers that are none
        return _line(Listed(listed.run, None, f"{listed.run.output.uri}: run.json is damaged ({describe(error)})"))


def _line(listed: Listed) -> Sequence[object]:
    run, look = listed.run, listed.look
    shown_as = f"↳ {run.name}" if run.base is not None else run.name
    name = element("a", visible(shown_as, 80), href=f"/run/{run.id}")
    if look is None:
        return name, element("strong", visible(listed.error or "", 300)), "", "", "", "", "", "", ""
    shown, totals = look.shown, look.shown.totals
    units = f"{totals.units:,}" if shown.planned is None else f"{totals.units:,} of {shown.planned:,}"
    rate = "–" if shown.rate is None else f"{shown.rate:,.0f}"
    retention = _percent(totals.retention)
    changed = "; ".join(run.changes()) if run.base is not None else ""
    state = join(_state(look), element("small", f" {visible(changed, 160)}") if changed else "")
    bar = charts.bar(totals.retention or 0.0, "kept", shown.target)
    return (
        name,
        state,
        units,
        totals.seen,
        totals.kept,
        join(retention, " ", bar),
        _percent(shown.target),
        _percent(paper_of(shown)),
        rate,
    )


def _state(look: Look) -> Markup:
    failed = f", {count(look.shown.failed_count, 'unit')} failed" if look.shown.failed_count else ""
    if look.at_work:
        return element("span", f"at work{failed}", class_="state at-work")
    if look.opened.complete:
        return element("span", f"complete{failed}", class_="state complete")
    return element("span", f"not complete{failed}", class_="state partial")


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{part:.1%}"


def paper_of(shown: Shown) -> float | None:
    """What the paper kept of the source that the profile is named after."""
    source = paper.of_profile(shown.opened.name)
    return None if source is None else source.kept


def run_page(run: Run, look: Look, others: Mapping[str, str]) -> bytes:
    """A run. others: runs and decisions that it can be compared with, names by id."""
    shown = look.shown
    made = fragments(look)
    names = [("funnel", "Funnel"), ("thresholds", "Thresholds"), ("samples", "Samples")]
    names += [(name, heading) for name, (heading, _) in _SECTIONS.items() if name != "funnel"]
    names += [("made-with", "Made with"), ("compare", "Compare")]
    links = [element("a", "All runs", href="/"), *(element("a", heading, href=f"#{name}") for name, heading in names)]
    fragment = {name: element("div", body, data_fragment=name) for name, body in made.items()}
    sections = {name: section(name, heading, fragment[name]) for name, (heading, _) in _SECTIONS.items()}
    funnel = sections.pop("funnel")
    main = [
        funnel,
        section("thresholds", "Try thresholds", _thresholds()),
        section("samples", "Samples", _samples(shown)),
        *sections.values(),
        section("made-with", "Thresholds, versions, fingerprints", made_with(shown)),
        section("compare", "Compare", _compare(run, others)),
    ]
    body = [
        element("header", fragment["head"], element("nav", *links, aria_label="Sections")),
        element("main", *main, id="content"),
        element("dialog", id="sample", aria_label="Sample"),
    ]
    title = f"{visible(shown.opened.name, 80)}: curation run"
    return _html(title, body, SCRIPTS, data_live=f"/run/{run.id}/live", data_run=run.id)


def fragments(look: Look) -> dict[str, Markup]:
    """What changes while a run goes on, by name."""
    made = {name: draw(look.shown) for name, (_, draw) in _SECTIONS.items()}
    return {"head": join(head(look.shown), _progress(look)), **made}


def _progress(look: Look) -> Markup:
    shown, done = look.shown, look.shown.totals.units
    parts: list[Child] = [_state(look)]
    if shown.planned:
        words = f" {done:,} of {count(shown.planned, 'unit')}, {share(done, shown.planned):.0%}"
        bar = element("progress", words, value=done, max=shown.planned, aria_label="Units that are committed")
        parts += [bar, element("span", words + _pace(look, shown.planned - done))]
    return element("p", *parts, class_="progress")


def _pace(look: Look, left: int) -> str:
    """How quickly a driver at work commits, and what is left at that pace."""
    rate = look.rate
    if not rate.get("units"):
        return ""
    seconds = left / rate["units"]
    span = f"{seconds / 60:,.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"
    return f"; {rate['samples']:,.0f} samples/s in the last minute, about {span} left"


def _thresholds() -> Markup:
    return join(
        prose(
            "Drag a line, or move it with the arrow keys: it stops at the edges of the counted bins. Light: all "
            "samples that filters judged; dark: those that pass every other filter. Where bins cannot decide, a range "
            "is told."
        ),
        element("noscript", prose("Trying thresholds needs JavaScript; `report` and `rescore --dry-run` do not.")),
        element("div", id="charts", aria_busy="true"),
        element("aside", id="tryout", hidden="hidden", aria_label="Thresholds tried"),
    )


def _samples(shown: Shown) -> Markup:
    reasons = ["any", "kept", *(name for name, number in sorted(shown.totals.reasons.items()) if number)]
    by = [element("option", name, value=name) for name in ("caption", "url", "key")]
    why = [element("option", visible(name, 80), value=name) for name in reasons]
    form = element(
        "form",
        element("label", "Look in ", element("select", *by, name="by")),
        element("label", "for ", element("input", type="search", name="text", autocomplete="off", maxlength=200)),
        element("label", "among ", element("select", *why, name="reason")),
        element("button", "Search", type="submit"),
        id="search",
        role="search",
    )
    return join(
        form,
        element("p", id="found", role="status"),
        element("ul", id="cards", class_="cards"),
        element("button", "More", id="more", type="button", hidden="hidden"),
    )


def _compare(run: Run, others: Mapping[str, str]) -> Markup:
    if not others:
        return prose("There is no other run or decision of this profile and input.")
    options = [element("option", visible(name, 120), value=id_) for id_, name in others.items()]
    return element(
        "form",
        element("label", "With ", element("select", *options, name="with")),
        element("button", "Compare", type="submit"),
        method="get",
        action=f"/run/{run.id}/compare",
        class_="compare",
    )


def compare_page(run: Run, look: Look, comparison: Comparison) -> bytes:
    """Two runs or decisions side by side."""
    name = visible(look.opened.name, 80)
    body = [
        element(
            "header",
            element("h1", f"{name}: comparison"),
            element("nav", element("a", "All runs", href="/"), element("a", "This run", href=f"/run/{run.id}")),
        ),
        element(
            "main",
            section("comparison", "Comparison", side_by_side.comparison_section(look.shown, comparison)),
            id="content",
        ),
    ]
    return _html(f"{name}: comparison", body, ())


def error_page(line: str) -> bytes:
    """One line, and the way back."""
    body = [
        element("header", element("nav", element("a", "All runs", href="/"))),
        element("main", element("p", visible(line, 600), class_="alert", role="alert"), id="content"),
    ]
    return _html("Not shown", body, ())


def _html(title: str, body: Sequence[Child], scripts: Sequence[str], **attributes: str) -> bytes:
    library = [element("script", src="/static/vendor/d3.min.js", defer="defer")] if "thresholds.js" in scripts else []
    parts = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        *(element("link", rel="stylesheet", href=f"/static/{name}") for name in ("report.css", "dashboard.css")),
        element("link", rel="icon", href="data:,"),  # else browsers ask for /favicon.ico
        *library,
        *(element("script", src=f"/static/{name}", type="module") for name in scripts),
    ]
    skip = element("a", "To the content", class_="skip", href="#content")
    html = element("html", element("head", *parts), element("body", skip, *body, **attributes), lang="en")
    return f"<!DOCTYPE html>\n{html}\n".encode()
