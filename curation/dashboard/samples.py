"""A sample for people: as a card, and whole with every score and why it was dropped.

The one decision: every text of a sample is made visible here (`report.markup.visible`), before it is JSON: what nobody
sees, or what turns the order of the others around, is written out, and what is long is clipped with its length told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curation import ledger
from curation.dashboard.whatif import Rules, side_of
from curation.opened import Opened
from curation.report.charts import thresholds_of
from curation.report.gallery import deciding, language_of
from curation.report.markup import visible
from filters.base import Filter

_SHORT, _LONG, _SOURCE = 300, 4_000, 60


def card(opened: Opened, row: Mapping[str, Any], picture: str | None) -> dict[str, Any]:
    """What a list shows of a ledger row. picture: its address."""
    reason = row["reason"]
    label = deciding(reason, opened.labels)
    caption, raw = row["caption"], row["caption_raw"]
    return {
        "key": visible(str(row["key"])),
        "reason": visible(reason or "kept", 100),
        "kept": reason is None,
        "caption": _text(caption if caption is not None else raw, _SHORT),
        "raw": _text(raw, _SHORT) if caption is not None and raw != caption else None,
        "url": _text(row["url"], _SHORT),
        "language": language_of(opened.record, row),
        "scores": [[name, value] for name, value in _scores(row, label, opened.labels) if name],
        "picture": picture,
    }


def whole(opened: Opened, rules: Rules, row: Mapping[str, Any], picture: str | None) -> dict[str, Any]:
    """All that the ledger says of a sample, filter by filter."""
    reason, failed = row["reason"], row["failed"] or []
    shown = card(opened, row, picture)
    judged = reason is None or reason.removesuffix(":error") in opened.labels
    size = f"{row['width']:,} × {row['height']:,} pixels" if row["width"] and row["height"] else None
    facts = [
        ("image", " ".join(part for part in (size, row["format"]) if part)),
        ("url", row["url"]),
        ("key", row["key"]),
        ("key of the source", row["source_key"]),
        ("unit", f"{row['unit_id'][:12]}, row {row['row']:,}"),
        ("also failed", ", ".join(label for label in failed if label != reason)),
    ]
    filters = []
    for label in opened.labels:
        settings = opened.record["thresholds"].get(label)
        scores = _scores(row, label, opened.labels)
        error = next((value for name, value in scores if name.endswith("_error")), None)
        verdict = "failed" if label in failed else "passed"
        if error is not None or reason == f"{label}:error":
            verdict = "error"
        elif not judged or (not scores and verdict == "passed"):
            verdict = "not scored"
        filters.append(
            {
                "label": visible(label, 80),
                "verdict": verdict,
                "decided": (reason or "").removesuffix(":error") == label,
                "scores": scores,
                "thresholds": [[visible(str(name), 80), _value(value)] for name, value in _plain(settings)],
            }
        )
    return {
        **shown,
        "caption": _text(row["caption"], _LONG),
        "raw": _text(row["caption_raw"], _LONG) if row["caption_raw"] != row["caption"] else None,
        "told": visible(told(opened, rules, row), 600),
        "facts": [[name, visible(str(value), _SHORT)] for name, value in facts if value],
        "filters": filters,
        "source": _source(row["source"]),
    }


def told(opened: Opened, rules: Rules, row: Mapping[str, Any]) -> str:
    """Why a sample was kept or dropped, in a sentence or two."""
    reason = row["reason"]
    if reason is None:
        return "Kept: it passed every filter."
    kind, _, why = reason.partition(":")
    if kind == "fetch":
        return f"Not fetched ({why}): it was listed and never seen."
    if kind == "unreadable":
        return f"Unreadable: {why.replace('_', ' ')}."
    if reason.endswith(":error"):
        errors = [str(row[name]) for name in row if name.startswith(f"{kind}_") and name.endswith("_error")]
        return f"Dropped: {kind} could not score it{': ' if any(errors) else ''}{'; '.join(errors)}."
    if reason not in opened.labels:
        return f"Dropped by the mapper {reason}."
    broken = _broken(opened, rules.get(reason), reason, row)
    return f"Dropped by {reason}{': ' if broken else ''}{'; '.join(broken)}."


def _broken(opened: Opened, rule: Filter | None, label: str, row: Mapping[str, Any]) -> list[str]:
    """Which thresholds a sample does not reach, where their names or the filter tell their side."""
    settings = opened.record["thresholds"].get(label) or {}
    scores = dict(_raw_scores(row, label, opened.labels))
    numeric = [name for name, value in scores.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    found = []
    for name in numeric:
        for mark in thresholds_of(name, list(rule.bins) if rule else numeric, settings):
            side = mark.side or (side_of(rule, name) if rule else "")
            at = float(np.float32(mark.value)) if isinstance(scores[name], float) else mark.value
            if (side == "min" and scores[name] < at) or (side == "max" and scores[name] > at):
                words = "below" if side == "min" else "above"
                found.append(f"{name} {_value(scores[name])} is {words} {mark.name} {_value(mark.value)}")
    return found


def _raw_scores(row: Mapping[str, Any], label: str, labels: Sequence[str]) -> list[tuple[str, Any]]:
    """A filter's scores that were computed, by their own names."""
    names = ledger.own_scores(row, label, labels)
    return [(score, row[name]) for name, score in names.items() if row[name] is not None]


def _scores(row: Mapping[str, Any], label: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    return [(visible(name, 80), _value(value)) for name, value in _raw_scores(row, label, labels)]


def _plain(settings: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in settings.items()] if isinstance(settings, Mapping) else []


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), _SHORT)


def _text(value: str | None, limit: int) -> str | None:
    return None if value is None else visible(value, limit)


def _source(text: str | None) -> list[list[str]]:
    """The source's own columns."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return []
    return [[visible(str(name), 80), _value(value)] for name, value in list(found.items())[:_SOURCE]]
