"""Funnels: sums of committed unit manifests, so that every page and command agrees to the sample after any crash."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The parts of a unit manifest that add up.
_SUMS = (
    *("listed", "seen", "kept", "reasons", "failed", "failed_alone", "failed_together"),
    *("scored", "hits", "seconds", "histograms"),
)


@dataclass
class Totals:
    """Sums over units; `histograms` keep their edges."""

    units: int = 0
    listed: int = 0
    seen: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    failed_alone: dict[str, int] = field(default_factory=dict)
    failed_together: dict[str, int] = field(default_factory=dict)
    scored: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    shard_bytes: int = 0

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Adds one unit."""
        self.units += 1
        for name in _SUMS:
            setattr(self, name, _sum(getattr(self, name), manifest[name]))
        self.warnings += manifest["warnings"]
        shard = manifest["files"]["shard"]
        self.shard_bytes += shard["bytes"] if shard else 0

    def merge(self, other: Totals) -> None:
        """Adds the sums of other units."""
        for name in ("units", "shard_bytes", "warnings", *_SUMS):
            left, right = getattr(self, name), getattr(other, name)
            setattr(self, name, left + right if name == "warnings" else _sum(left, right))

    # Reasons are shown by name, not as they were met: that depends on which units were compacted when.

    @property
    def fetch(self) -> dict[str, int]:
        return {reason: count for reason, count in sorted(self.reasons.items()) if reason.startswith("fetch:")}

    @property
    def unreadable(self) -> dict[str, int]:
        return {reason: count for reason, count in sorted(self.reasons.items()) if reason.startswith("unreadable:")}

    @property
    def retention(self) -> float | None:
        """kept / seen; None where nothing was seen."""
        return self.kept / self.seen if self.seen else None


def _sum(left: Any, right: Any) -> Any:
    if isinstance(right, Mapping):
        merged = dict(left)
        for key, value in right.items():
            if key in ("low", "high"):
                merged[key] = value
            else:
                merged[key] = _sum(merged[key], value) if key in merged else value
        return merged
    if isinstance(right, list):
        return [a + b for a, b in zip(left, right, strict=True)]
    return left + right


def funnel(totals: Totals, filters: Sequence[str]) -> dict[str, Any]:
    """The funnel as JSON: what `manifest.json` carries and every page shows."""
    listed = {"listed": totals.listed, "fetch": totals.fetch} if totals.fetch else {}
    return {
        **listed,
        "seen": totals.seen,
        "unreadable": totals.unreadable,
        "mappers": {
            reason: count
            for reason, count in sorted(totals.reasons.items())
            if ":" not in reason and reason not in filters
        },
        "filters": {
            label: {
                "scored": totals.scored.get(label, 0),
                "dropped_first": totals.reasons.get(label, 0) + totals.reasons.get(f"{label}:error", 0),
                "failed": totals.failed.get(label, 0),
                "failed_alone": totals.failed_alone.get(label, 0),
                "errors": totals.reasons.get(f"{label}:error", 0),
            }
            for label in filters
        },
        "kept": totals.kept,
        "retention": totals.retention,
    }


def funnel_lines(totals: Totals, filters: Sequence[str], target: float | None, seconds: float | None) -> list[str]:
    """The funnel as plain text. seconds: wall time of the run, for samples/s."""
    shape = funnel(totals, filters)
    seen = totals.seen
    width = 40
    lines: list[str] = []

    def bar(count: int) -> str:
        filled = round(width * count / seen) if seen else 0
        return "#" * filled + "." * (width - filled)

    def row(name: str, count: int, left: int, rest: str = "") -> None:
        lines.append(f"  {name:<16}{-count:>9,}  {left:>9,}  {bar(left)} {rest}".rstrip())

    left = totals.listed
    if totals.fetch:
        lines.append(f"  {'listed':<16}{'':>9}  {left:>9,}")
        left -= sum(totals.fetch.values())
        lines.append(f"  {'not fetched':<16}{-sum(totals.fetch.values()):>9,}  {left:>9,}")
    lines.append(f"  {'seen':<16}{'':>9}  {left:>9,}  {bar(left)}")
    left -= sum(totals.unreadable.values())
    row("unreadable", sum(totals.unreadable.values()), left)
    for name, count in shape["mappers"].items():
        left -= count
        row(name, count, left)
    for label, numbers in shape["filters"].items():
        left -= numbers["dropped_first"]
        rest = f"failed {numbers['failed']:,}, alone {numbers['failed_alone']:,}"
        if numbers["errors"]:
            rest += f", errors {numbers['errors']:,}"
        row(label, numbers["dropped_first"], left, rest)
    lines.append(f"  {'kept':<16}{'':>9}  {totals.kept:>9,}  {bar(totals.kept)}")
    if totals.retention is None:
        lines.append("retention: nothing was seen")
    else:
        aim = "" if target is None else f" (target {target:.1%}, {(totals.retention - target) * 100:+.1f} points)"
        lines.append(f"retention: {totals.retention:.1%} of {seen:,} pairs seen{aim}")
    for name, counts in (("not fetched", totals.fetch), ("unreadable", totals.unreadable), ("rewritten", totals.hits)):
        if any(counts.values()):
            lines += textwrap.wrap(f"{name}: {_parts(counts)}", 118, subsequent_indent="  ", break_on_hyphens=False)
    steps = {step: value for step, value in totals.seconds.items() if value >= 0.005}
    if steps:
        lines.append(f"worker seconds: {', '.join(f'{step} {value:.1f}' for step, value in steps.items())}")
    if seconds:
        lines.append(f"wall: {seconds:.1f} s, {totals.listed / seconds:,.0f} samples/s")
    return lines


def _parts(counts: Mapping[str, int]) -> str:
    ordered = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name.partition(':')[2] or name} {count:,}" for name, count in ordered)
