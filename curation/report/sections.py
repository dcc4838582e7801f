"""The sections of the page that show one run: funnel, filters, scores, the paper, rewriting, losses, time, trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from curation.report import charts, data, paper
from curation.report.data import Shown, count, share
from curation.report.markup import Child, Markup, element, join, visible
from curation.report.tables import prose, table


def funnel(shown: Shown) -> Markup:
    """What was listed, lost, dropped and kept, in the order of execution."""
    totals = shown.totals
    if not totals.listed:
        return prose("No sample was listed in the units that are committed: there is no funnel yet.")
    rows = []
    for stage in data.stages(shown):
        kind = {"dropped": "left", "count": "left", "kept": "kept"}[stage.kind]
        gone = share(stage.dropped, totals.listed)
        name = join(visible(stage.name, 80), charts.bar(share(stage.left, totals.listed), kind, gone=gone))
        dropped = (f"−{stage.dropped:,}" if stage.dropped else "0") if stage.kind == "dropped" else ""
        left = "" if stage.name in ("listed", "not fetched") else f"{share(stage.left, totals.seen):.1%}"
        rows.append((name, dropped, stage.left, left))
    return join(
        table("Funnel, in the order of execution", ("stage", "dropped", "left", "of seen"), rows, kind="funnel"),
        prose(
            "The thin end of a bar is what the step dropped. A sample is dropped by the first step that it fails; "
            "retention is kept / seen."
        ),
    )


def filters(shown: Shown) -> Markup:
    """What each filter dropped, and how filters overlap."""
    if not shown.labels:
        return prose("This profile has no filters.")
    numbers = shown.funnel["filters"]
    names = {"scored": "scored", "dropped_first": "dropped first", "failed": "failed at all", "failed_alone": "alone"}
    if any(at["errors"] for at in numbers.values()):
        names["errors"] = "errors"
    rows = [(label, *(at[name] for name in names)) for label, at in numbers.items()]
    heads = ("filter", *names.values())
    return join(
        prose(
            "Among computed scores only: filters that need pixels score what has passed everything before them, so of "
            "samples dropped earlier they say nothing. ",
            element("strong", "Dropped first"),
            ": the first failure in the order of execution, which is the reason in the ledger. ",
            element("strong", "At all"),
            ": with or without others. ",
            element("strong", "Alone"),
            ": no other filter that scored it failed it. "
            + ("" if "errors" in names else "No score failed to be computed."),
        ),
        element(
            "div",
            element(
                "div",
                table("What each filter dropped", heads, rows[: data.ROWS]),
                *_more(len(rows), data.ROWS, "filters"),
            ),
            element("div", _overlap(shown)),
            class_="beside",
        ),
    )


def _overlap(shown: Shown) -> Markup:
    """Filters by filters: samples that fail both."""
    labels, totals = shown.labels, shown.totals
    told = labels[: data.MATRIX]
    if len(told) < 2:
        return prose("There is one filter: nothing overlaps.")
    if not any(totals.failed.values()):
        return prose("No sample failed a filter: nothing overlaps.")
    lines = []
    for row, one in enumerate(told):
        cells = [element("th", f"{row + 1} ", visible(one, 80), scope="row")]
        for other in told:
            both = data.together(totals, one, other)
            part = share(both, data.together(totals, one, one))
            words: list[Child] = [f"{both:,}"]
            if one != other and both:
                words.append(element("small", f"{part:.0%}"))
            heat = "self" if one == other else f"heat{min(int(part * 5) + 1, 5) if both else 0}"
            cells.append(element("td", *words, class_=f"number {heat}"))
        lines.append(element("tr", *cells))
    heads = [
        element("th", element("abbr", str(column + 1), title=visible(label, 80)), scope="col", class_="number")
        for column, label in enumerate(told)
    ]
    caption = "Samples that fail both filters"
    matrix = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", element("th", "filter", scope="col"), *heads)),
        element("tbody", *lines),
        class_="matrix",
    )
    return join(
        element("div", matrix, class_="scroll", tabindex=0, role="region", aria_label=caption),
        *_more(len(labels), data.MATRIX, "filters"),
        prose(
            "Columns are numbered as the rows are. The percentage is of the samples that fail the row's filter; the "
            "diagonal is all of them. What was dropped before its pixels were scored fails no pixel filter."
        ),
    )


def scores(shown: Shown) -> Markup:
    """Histograms with thresholds."""
    drawn, without = data.histograms(shown)
    parts: list[Child] = []
    if drawn:
        parts.append(
            prose(
                element("span", "", class_="key all"),
                " all samples that filters judged  ",
                element("span", "", class_="key others"),
                " of these, what passes every other filter that scored it: what this threshold alone decides about  ",
                element("span", "", class_="key threshold"),
                " threshold",
            )
        )
    figures = [_figure(chart, number) for number, chart in enumerate(drawn[: data.CHARTS])]
    parts.append(element("div", *figures, class_="charts"))
    parts += _more(len(drawn), data.CHARTS, "histograms")
    if without:
        names = ", ".join(visible(label, 80) for label in without[: data.ROWS])
        reason = "it keeps no histogram, or nothing was scored" if len(without) == 1 else "none kept, or nothing scored"
        parts.append(prose(f"No histogram of {names}: {reason}."))
    return join(*parts)


def _figure(chart: charts.Histogram, number: int) -> Markup:
    numbers = table("Bars in numbers", ("score", "all", "passing the others"), charts.bins(chart))
    return element(
        "figure",
        element("figcaption", element("h3", visible(chart.name, 100))),
        charts.draw_histogram(chart, number),
        element("p", f"{count(chart.total, 'sample')}. ", " ".join(charts.notes(chart)), class_="note"),
        element("details", element("summary", "Bars in numbers"), numbers),
    )


def against_the_paper(shown: Shown) -> Markup:
    """Retention against the paper's table."""
    retention = shown.totals.retention
    own = paper.of_profile(shown.opened.name)
    here = "–" if retention is None else f"{retention:.1%}"
    rows: list[tuple[Child, ...]] = []
    marked = None
    for source in (*paper.TABLE, paper.TOTAL):
        mine = source is own
        if mine:
            marked = len(rows)
        name = join(
            source.name,
            element("strong", " ◀ this run") if mine else "",
            charts.bar(source.kept, "left", retention if mine else None),
        )
        kept = f"{source.kept:.0%}"
        pairs = _millions(source.original), _millions(source.cleaned)
        rows.append((name, kept, here if mine else "", *pairs, source.language))
    if own is None:
        marked = len(rows)
        name = join(
            visible(shown.opened.name, 80),
            element("strong", " ◀ this run"),
            charts.bar(retention or 0.0, "kept", shown.target),
        )
        target = "–" if shown.target is None else f"target {shown.target:.0%}"
        rows.append((name, target, here, "", "", ""))
    heads = ("data set", "kept", "this run", "original", "cleaned", "lang")
    caption = "Retention: the paper's table and this run"
    words = f"Source: {paper.SOURCE}, with its rounded counts. "
    if own is None:
        words += "This profile is none of the paper's ten sources: its own target stands in the last line. "
    else:
        words += "The line on the bar is this run. "
    return join(
        table(caption, heads, rows, marked=marked, kind="paper"),
        prose(words, "What the paper counts as original may be what could be fetched; here it is what was seen."),
    )


def _millions(number: float) -> str:
    return f"{number / 1000:g}B" if number >= 1000 else f"{number:g}M"


def rewriting(shown: Shown) -> Markup:
    """Pattern rules and other mappers' rules by hits."""
    hits = shown.totals.hits
    met = _ordered(hits)
    if not hits:
        return prose("This profile has no mapper that counts what it rewrites.")
    never = sorted(name for name, number in hits.items() if not number)
    parts: list[Child] = []
    if met:
        caption = "Captions that each rule changed or dropped"
        parts.append(
            table(
                caption, ("rule", "of the most frequent", "captions"), _barred(met, met[0][1]), heads=2, kind="barred"
            )
        )
        parts += _more(len(met), data.ROWS, "rules")
    else:
        parts.append(prose("No rule met a caption."))
    if never:
        names = ", ".join(visible(name, 80) for name in never[: data.ROWS])
        rest = f" and {len(never) - data.ROWS:,} more" if len(never) > data.ROWS else ""
        parts.append(prose(f"Never met: {names}{rest}."))
    return join(*parts)


def losses(shown: Shown) -> Markup:
    """Why images were not fetched, and why samples could not be judged."""
    halves = []
    for caption, counts, none in (
        ("Not fetched: listed, not seen", shown.totals.fetch, "Every image that was listed was fetched."),
        ("Unreadable: seen, not judged", shown.totals.unreadable, "Every sample could be read."),
    ):
        found = _ordered({name.partition(":")[2]: number for name, number in counts.items()})
        if found:
            rows = _barred(found, sum(counts.values()))
            shown_ = table(caption, ("reason", "of all here", "samples"), rows, heads=2, kind="barred")
            halves.append(element("div", shown_, *_more(len(found), data.ROWS, "reasons")))
        else:
            halves.append(element("div", prose(none)))
    return element("div", *halves, class_="beside")


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, number) for name, number in counts.items() if number), key=lambda item: (-item[1], item[0]))


def _barred(found: list[tuple[str, int]], whole: float) -> list[tuple[str, Markup, int]]:
    return [
        (visible(name, 100), charts.bar(share(number, whole), "left"), number) for name, number in found[: data.ROWS]
    ]


def time_(shown: Shown) -> Markup:
    """Where the time went."""
    seconds = sorted(shown.totals.seconds.items(), key=lambda item: (-item[1], item[0]))
    whole = sum(value for _, value in seconds)
    parts: list[Child] = []
    if whole:
        rows = [
            (step, charts.bar(share(value, whole), "left"), f"{value:,.1f}", f"{value / whole:.1%}")
            for step, value in seconds[: data.ROWS]
        ]
        parts.append(
            table("Worker seconds of each step", ("step", "of all", "seconds", "%"), rows, heads=2, kind="barred")
        )
    else:
        parts.append(prose("No step has recorded its time."))
    if shown.rate is not None:
        parts.append(
            prose(
                f"Wall time {shown.wall:,.1f} s in {count(len(shown.sessions), 'session')}: "
                f"{shown.rate:,.0f} samples/s. Worker seconds add up over all workers, without Ray's own time."
            )
        )
    else:
        parts.append(prose("No session has been recorded: wall time and samples/s are not known."))
    return join(*parts)


def trouble(shown: Shown) -> Markup:
    """Warnings, and units that failed."""
    warnings = shown.totals.warnings
    parts: list[Child] = []
    if shown.failed:
        rows = [(str(record["input"]), str(record["error"])) for record in shown.failed]
        parts.append(table("Units that failed", ("unit", "error"), rows, heads=2))
        parts += _more(shown.failed_count, data.FAILED, "failed units")
    else:
        parts.append(prose("No unit failed."))
    if warnings:
        items = (element("li", visible(warning, 400)) for warning in warnings[: data.WARNINGS])
        parts.append(element("h3", count(len(warnings), "warning")))
        parts.append(element("ul", *items, class_="warnings"))
        parts += _more(len(warnings), data.WARNINGS, "warnings (`stats --json` has them all)")
    else:
        parts.append(prose("No warnings."))
    return join(*parts)


def _more(number: int, limit: int, what: str) -> list[Markup]:
    return [prose(f"Shown are {limit:,} of {number:,} {what}.")] if number > limit else []


# Name, heading and drawing of the sections, in the order of the page.
SECTIONS: tuple[tuple[str, str, Callable[[Shown], Markup]], ...] = (
    ("funnel", "Funnel", funnel),
    ("filters", "Filters", filters),
    ("scores", "Scores and thresholds", scores),
    ("paper", "Against the paper", against_the_paper),
    ("rewriting", "Rewritten captions", rewriting),
    ("losses", "Not fetched, unreadable", losses),
    ("time", "Time", time_),
    ("trouble", "Warnings and failures", trouble),
)
