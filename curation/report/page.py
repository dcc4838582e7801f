"""The page itself: head, foot, and the sections in their order.

The one decision: the page is whole by itself. It has no script, asks for nothing over the network, and its policy
(Content-Security-Policy) forbids both, so that even a mistake in it could not.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from curation.report import cards, side_by_side
from curation.report.compare import Comparison
from curation.report.data import Shown, count
from curation.report.gallery import Gallery
from curation.report.markup import Child, Markup, element, join, visible
from curation.report.sections import SECTIONS
from curation.report.tables import prose, section, setting, table

# The whole file; what the other sections leave of it is the gallery's.
LIMIT = 4_800_000


def page(shown: Shown, gallery: Gallery, comparison: Comparison | None = None) -> bytes:
    """The report as UTF-8; less than 5 MB. The same run gives the same bytes."""
    sections = [(name, heading, draw(shown)) for name, heading, draw in SECTIONS]
    if comparison is not None:
        sections.insert(1, ("comparison", "Comparison", side_by_side.comparison_section(shown, comparison)))
    foot = _foot(shown)
    style = resources.files("curation.report").joinpath("style.css").read_text(encoding="utf-8")
    rest = sum(len(body.encode()) for *_, body in (*sections, ("", "", foot))) + len(style) + 20_000
    sections.append(("gallery", "Samples", cards.gallery_section(shown, gallery, LIMIT - rest)))
    title = f"{visible(shown.opened.name, 80)}: curation report"
    links = [element("a", heading, href=f"#{name}") for name, heading, _ in sections]
    body = [
        element("a", "To the content", class_="skip", href="#content"),
        element("header", head(shown), element("nav", *links, aria_label="Sections")),
        element("main", *(section(*part) for part in sections), id="content"),
        foot,
    ]
    # Text in this element is raw: style.css is ours and holds no `<`.
    sheet = Markup(f"<style>{style}</style>")
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'; "
        "base-uri 'none'; form-action 'none'"
    )
    about = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        sheet,
    ]
    html = element("html", element("head", *about), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{html}\n".encode()


def head(shown: Shown) -> Markup:
    """What a run is, and its outcome."""
    totals, what = shown.totals, "Decision" if shown.opened.is_decision else "Run"
    parts: list[Child] = [
        element(
            "p", f"{what} · ", element("span", visible(shown.opened.output.uri, 200), class_="code"), class_="over"
        ),
        element("h1", visible(shown.opened.name, 80)),
    ]
    if not shown.opened.complete:
        planned = "" if shown.planned is None else f" of {shown.planned:,}"
        parts.append(
            element(
                "p",
                element("strong", "Not complete. "),
                f"These are the numbers of the {totals.units:,}{planned} units that are committed so far.",
                class_="alert",
                role="note",
            )
        )
    if totals.retention is None:
        parts.append(element("p", "Nothing was seen: there is no retention to speak of.", class_="lead"))
    else:
        parts.append(element("p", _lead(shown, totals.retention), class_="lead"))
    tiles = [
        ("kept", f"{totals.kept:,}"),
        ("seen", f"{totals.seen:,}"),
        ("retention", "–" if totals.retention is None else f"{totals.retention:.1%}"),
        ("units", f"{totals.units:,}"),
        ("shards", _size(shown.shard_bytes) if shown.shard_bytes else "none"),
    ]
    if shown.rate is not None:
        tiles.append(("samples/s", f"{shown.rate:,.0f}"))
    facts = (element("div", element("dt", name), element("dd", value), class_="tile") for name, value in tiles)
    return join(*parts, element("dl", *facts, class_="tiles"))


def _lead(shown: Shown, retention: float) -> str:
    totals = shown.totals
    words = f"Of {count(totals.seen, 'pair')} seen, {totals.kept:,} {'was' if totals.kept == 1 else 'were'} kept: "
    words += f"{retention:.1%}"
    if shown.target is None:
        return f"{words}. The profile names no target."
    gap = (retention - shown.target) * 100
    where = "on target" if abs(gap) < 0.05 else f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} it"
    return f"{words}. The target is {shown.target:.1%}: {where}."


def _size(bytes_: int) -> str:
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if bytes_ >= size:
            return f"{bytes_ / size:.1f} {unit}"
    return f"{bytes_} B"


def made_with(shown: Shown) -> Markup:
    """Thresholds, versions and fingerprints of a run."""
    record = shown.record
    thresholds = [
        (label, name, setting(value))
        for label, settings in record["thresholds"].items()
        for name, value in (settings if isinstance(settings, dict) else {"": settings}).items()
    ]
    prints = [
        ("decision", record.get("decision_fp")),
        ("scores", record.get("score_fp")),
        ("input", record["input"].get("sha256")),
    ]
    if "decided_from" in record:
        prints.append(("decided from", record["decided_from"]))
    about = [
        ("made", shown.dates),
        ("input", record["input"]["uri"]),
        ("units of the input", "not recorded" if shown.planned is None else f"{shown.planned:,}"),
        ("mappers", ", ".join(map(str, record.get("mappers") or [])) or "none"),
    ]
    versions = list((record.get("versions") or {}).items())[:60]
    tables = [
        table("Thresholds, in the order of execution", ("filter", "threshold", "value"), thresholds[:300], heads=2),
        table("Of this run", ("what", "value"), about),
        table("Versions it was made with", ("package", "version"), versions),
        table("Fingerprints", ("of", "sha256"), prints, code=True),
    ]
    return element("div", element("div", *tables[:1]), element("div", *tables[1:]), class_="beside")


def _foot(shown: Shown) -> Markup:
    return element(
        "footer",
        element("h2", "Thresholds, versions, fingerprints", id="made-with"),
        made_with(shown),
        prose("One file, no script, nothing fetched: it can be sent and kept as it is."),
        aria_labelledby="made-with",
    )
