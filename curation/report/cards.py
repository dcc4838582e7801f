"""The gallery as HTML: a card per sample, reason by reason, within what is left of the page's bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from curation.report.data import ROWS, Shown, count
from curation.report.gallery import Gallery, Sample, deciding, limit_of
from curation.report.markup import Child, Markup, element, join, visible
from curation.report.tables import prose

_CAPTION, _URL, _SCORES = 300, 160, 24


def gallery_section(shown: Shown, gallery: Gallery, budget: int) -> Markup:
    """Kept samples first, then those of every reason. budget: bytes of all cards together."""
    parts: list[Child] = [prose(note) for note in gallery.notes]
    reasons = _reasons(shown, gallery)
    cards, left_out = _within(gallery, reasons, shown.labels, budget)
    if not cards:
        return join(*parts, prose("There are no samples to show."))
    caps = (
        f"At most {limit_of(None)} kept samples, {limit_of('')} of each filter and mapper and {limit_of('fetch:')} of "
        "the other reasons: those with the smallest sha256 of their key. Addresses are text, never links."
    )
    parts.append(prose(caps))
    if left_out:
        parts.append(prose(f"{count(left_out, 'sample')} left out: the page would pass 5 MB."))
    for reason in reasons:
        if cards.get(reason):
            told = f"{len(cards[reason])} shown of {_count(shown, reason):,}"
            head = element("h3", visible(reason or "kept", 80), element("span", told, class_="count"))
            parts += [head, element("ul", *cards[reason], class_="cards")]
    empty = [reason for reason in _named(shown) if not gallery.samples.get(reason) and _count(shown, reason)]
    if empty:
        names = ", ".join(visible(reason or "kept", 80) for reason in empty[:ROWS])
        parts.append(prose(f"No sample at hand of: {names}."))
    return join(*parts)


def _count(shown: Shown, reason: str | None) -> int:
    return shown.totals.kept if reason is None else shown.totals.reasons.get(reason, 0)


def _named(shown: Shown) -> list[str | None]:
    """Kept, filters in the order of execution, everything else by name; unreadable and fetch last."""
    order = {label: index for index, label in enumerate(shown.labels)}

    def place(reason: str) -> tuple[int, int, str]:
        last = 2 if reason.startswith("unreadable:") else 3 if reason.startswith("fetch:") else 1
        known = order.get(reason.removesuffix(":error"))
        return (last, 0, reason) if known is None else (0, known, reason)

    return [None, *sorted(shown.totals.reasons, key=place)]


def _reasons(shown: Shown, gallery: Gallery) -> list[str | None]:
    return [reason for reason in _named(shown) if reason in gallery.samples][:ROWS]


def _within(
    gallery: Gallery, reasons: list[str | None], labels: Sequence[str], budget: int
) -> tuple[dict[str | None, list[Markup]], int]:
    """Cards by reason: one of each in turn, until the bytes are used up; and how many were left out."""
    cards: dict[str | None, list[Markup]] = {}
    used = left_out = 0
    for turn in range(max(limit_of(None), limit_of(""))):
        for reason in reasons:
            samples = gallery.samples[reason][: limit_of(reason)]
            if turn >= len(samples):
                continue
            card = _card(samples[turn], labels)
            if used + len(card.encode()) > budget:
                left_out += 1
                continue
            used += len(card.encode())
            cards.setdefault(reason, []).append(card)
    return cards, left_out


def _card(sample: Sample, labels: Sequence[str]) -> Markup:
    caption = sample.caption if sample.caption is not None else sample.caption_raw
    parts: list[Child] = []
    if sample.thumbnail is not None:
        source = f"data:image/jpeg;base64,{base64.b64encode(sample.thumbnail).decode()}"
        words = f"Image of the pair: {visible(caption, 120)}" if caption else "Image of a pair without a caption"
        parts.append(element("img", src=source, alt=words, decoding="async"))
    # An image without a thumbnail could not be decoded, or never came: the reason says which.
    parts.append(_caption(sample, caption))
    if sample.caption is not None and sample.caption_raw is not None and sample.caption != sample.caption_raw:
        raw = element("q", visible(sample.caption_raw, _CAPTION), lang=sample.language, dir="auto")
        parts.append(element("p", element("b", "raw "), raw, class_="raw"))
    first_of = deciding(sample.reason, labels)
    first = [(name, value) for name, value in sample.scores.items() if name.startswith(f"{first_of}_")]
    also = [label for label in sample.failed if label != sample.reason]
    facts = [(name, _score(value)) for name, value in first[:_SCORES]]
    if also:
        facts.append(("also failed", ", ".join(also)))
    parts.append(_facts(facts))
    if sample.url:
        parts.append(element("p", visible(sample.url, _URL), class_="url"))
    rest = [(name, _score(value)) for name, value in sample.scores.items() if (name, value) not in first]
    more = [*([("image", sample.size)] if sample.size else []), *rest[:_SCORES], ("key", sample.key)]
    parts.append(element("details", element("summary", "all scores, key"), _facts(more)))
    return element("li", *parts, class_="card")


def _facts(facts: Sequence[tuple[str, str]]) -> Child:
    rows = [
        element("div", element("dt", visible(name, 80)), element("dd", visible(value, _CAPTION)))
        for name, value in facts
    ]
    return element("dl", *rows) if rows else []


def _caption(sample: Sample, caption: str | None) -> Markup:
    if not caption:
        return element("p", "no caption", class_="caption none")
    return element("p", visible(caption, _CAPTION), class_="caption", lang=sample.language, dir="auto")


def _score(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
