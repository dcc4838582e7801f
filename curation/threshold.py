"""From scores to a threshold: which number keeps the wanted share of what was seen.

The one decision: a threshold is a quantile of the scores of those samples that pass ALL other filters, and it is judged
by `Filter.keep`'s own rule (`min` inclusive, float32), so what is predicted of a sample is what a run makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal, localcontext
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import ledger
from filters.base import Filter
from filters.clip_score import ClipScore, Minimums

Scores: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

# Decimals of a threshold, as of the scores of a model; more only where scores lie closer together.
DECIMALS = 4


@dataclass(frozen=True)
class Scored:
    """What counts of one unit.

    seen: samples that were fetched. others: those that pass all other filters. anyway: of these, kept at any threshold
    (no score, and `missing: keep`). mute: of these, without a score and so never kept. scores: of the rest, ascending,
    by language (`""` where one threshold serves all). lacking: samples whose scores a run with other thresholds did not
    make; the unit cannot be used while there are any.
    """

    seen: int
    others: int
    anyway: int
    mute: int
    scores: dict[str, Scores]
    lacking: int

    def kept(self, minimums: Mapping[str, float]) -> int:
        """Samples kept with these thresholds."""
        return self.anyway + sum(
            len(scores) - int(np.searchsorted(scores, np.float32(minimums[language]), "left"))
            for language, scores in self.scores.items()
        )


def scored(table: pa.Table, filters: Mapping[str, Filter], label: str) -> Scored:
    """Reads a ledger part, decided with whatever thresholds, for the threshold of `filters[label]`."""
    rule = filters[label]
    assert isinstance(rule, ClipScore)
    reasons = table.column("reason").combine_chunks()
    fetched = ~_mask(pc.fill_null(pc.starts_with(reasons, "fetch:"), False))
    others = {name: other for name, other in filters.items() if name != label}
    decision = ledger.decide(table, others, ledger.problems_of(table, filters))
    unscored = _mask(decision.unscored)
    passes = _mask(pc.is_null(decision.reason)) & ~unscored
    # A filter that gave neither a score nor a word was asked: asking again would say as little.
    asked = _mask(pc.is_in(reasons, value_set=pa.array([f"{name}:error" for name in filters], pa.string())))
    found = ledger.scores_of(table, label, rule)
    cosines = found.column("cosine").cast(pa.float32()).to_numpy()  # null becomes NaN
    there = ~np.isnan(cosines)
    told = _mask(pc.is_valid(found.column("cosine_error"))) if rule.column is None else np.ones(len(table), dtype=bool)
    below = np.ones(len(table), dtype=bool) if rule.max is None else cosines <= np.float32(rule.max)
    always = cosines > 1  # a shipped score may be no cosine
    keeping = rule.column is not None and rule.missing == "keep"
    by_language = {"": np.ones(len(table), dtype=bool)}
    if isinstance(rule.min, Minimums):
        chinese = _mask(pc.fill_null(pc.equal(found.column("language"), "zh"), False))
        by_language = {"en": ~chinese, "zh": chinese}
    pool = passes & there & below & ~always & (cosines >= -1)
    anyway = passes & ((there & below & always) | (~there & keeping))
    return Scored(
        int(fetched.sum()),
        int(passes.sum()),
        int(anyway.sum()),
        int((passes & ~there & ~anyway).sum()),
        {language: np.sort(cosines[pool & one]) for language, one in by_language.items()},
        int(((unscored | (passes & ~there & ~told)) & ~asked).sum()),
    )


@dataclass(frozen=True)
class Tie:
    """Samples that lie exactly on a threshold, and what would be kept one step above it."""

    language: str
    threshold: str
    samples: int
    kept_above: int


@dataclass(frozen=True)
class Solution:
    """texts: the thresholds as they are to be written, by language. kept: samples that they keep of those `seen`."""

    texts: dict[str, str]
    kept: int
    seen: int
    ties: list[Tie]

    @property
    def minimums(self) -> dict[str, float]:
        return {language: float(text) for language, text in self.texts.items()}


class OutOfReach(Exception):
    """No threshold gives the target. `kept`: what the nearest one would keep; `most`: whether it is too few."""

    def __init__(self, kept: int, most: bool) -> None:
        super().__init__(kept)
        self.kept = kept
        self.most = most


@dataclass(frozen=True)
class _Step:
    """One possible threshold of a language: on `value`, which keeps `kept` of its samples."""

    value: np.float32
    lower: np.float32 | None
    samples: int
    kept: int


def solve(units: Sequence[Scored], target: float, before: Mapping[str, float]) -> Solution:
    """The thresholds that keep nearest to `target` (0 to 1) of what was seen; of two as near, the one that keeps more.

    before: today's thresholds by language. Each language is cut at the same fraction of its scores; one without any
    keeps its number. Raises `OutOfReach`.
    """
    seen = sum(unit.seen for unit in units)
    anyway = sum(unit.anyway for unit in units)
    wanted = target * seen
    pools = {language: np.sort(np.concatenate([unit.scores[language] for unit in units])) for language in before}
    scores = sum(len(pool) for pool in pools.values())
    if anyway + scores < wanted - 1e-6:
        raise OutOfReach(anyway + scores, most=True)
    if not scores or anyway > wanted + 1e-6:
        raise OutOfReach(anyway, most=False)
    fraction = (wanted - anyway) / scores
    steps = {language: _around(pool, fraction * len(pool)) for language, pool in pools.items() if len(pool)}
    choices = [dict(zip(steps, chosen, strict=True)) for chosen in product(*steps.values())]

    def far(chosen: dict[str, _Step]) -> tuple[float, float]:
        kept = anyway + sum(step.kept for step in chosen.values())
        return abs(kept - wanted), -kept

    best = min(choices, key=far)
    kept = anyway + sum(step.kept for step in best.values())
    texts = {
        language: decimal(best[language].value, best[language].lower) if language in best else written(number)
        for language, number in before.items()
    }
    ties = [Tie(language, texts[language], step.samples, kept - step.samples) for language, step in best.items()]
    return Solution(texts, kept, seen, ties)


def _around(pool: Scores, wanted: float) -> list[_Step]:
    """The steps next to `wanted` samples kept, the one that keeps more first. pool: ascending, not empty."""
    values, counts = np.unique(pool, return_counts=True)
    kept = np.cumsum(counts[::-1])[::-1]  # by value, of those at it and above
    more = int(np.searchsorted(-kept, -wanted, "right")) - 1  # the last that keeps at least so many
    chosen = {max(more, 0), min(more + 1, len(values) - 1)}
    return [_Step(values[at], values[at - 1] if at else None, int(counts[at]), int(kept[at])) for at in sorted(chosen)]


def decimal(value: np.float32, lower: np.float32 | None) -> str:
    """A short decimal number that as float32 lies above `lower` (None: nothing is) and not above `value`."""
    with localcontext() as context:
        context.prec = 200
        exact = Decimal(float(value))
        for digits in range(DECIMALS, 150):
            for rounding in (ROUND_HALF_EVEN, ROUND_FLOOR):
                rounded = exact.quantize(Decimal(1).scaleb(-digits), rounding)
                single = np.float32(float(rounded))
                if -1 <= rounded <= 1 and single <= value and (lower is None or single > lower):
                    return written(rounded)
        return written(exact)


def written(number: Decimal | float) -> str:
    """A number as YAML reads it for what it is: never with an exponent, always with a point."""
    text = f"{number if isinstance(number, Decimal) else Decimal(repr(number)):f}"
    whole, _, rest = text.partition(".")
    rest = rest.rstrip("0") or "0"
    return f"{whole}.{rest}" if (whole, rest) != ("-0", "0") else "0.0"


def _mask(array: pa.Array | pa.ChunkedArray) -> Mask:
    return np.asarray(array, dtype=bool)
