"""How well a sample of units tells the retention of all of them: a 95 % interval, and how many units a narrower takes.

The one decision: a unit is what is drawn, so a unit is what varies. Samples of one file are alike, and a formula for
independent samples would promise far too much. Retention is the ratio of two sums over units (kept, seen); its spread
is that of the units' residuals, with a finite population correction: all units together leave nothing to guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A share with its interval, all from 0 to 1. `half`: half the width, also where an end is cut off at 0 or 1."""

    estimate: float
    half: float

    @property
    def low(self) -> float:
        return max(0.0, self.estimate - self.half)

    @property
    def high(self) -> float:
        return min(1.0, self.estimate + self.half)


@dataclass
class Ratio:
    """Sums over units, whole numbers all of them: what the ratio and its spread are made of, without rounding."""

    units: int = 0
    kept: int = 0
    seen: int = 0
    kept2: int = 0
    seen2: int = 0
    both: int = 0

    @classmethod
    def of(cls, units: Iterable[tuple[int, int]]) -> Ratio:
        """From (kept, seen) of each unit."""
        ratio = cls()
        for kept, seen in units:
            ratio.add(kept, seen)
        return ratio

    def add(self, kept: int, seen: int) -> None:
        self.units += 1
        self.kept += kept
        self.seen += seen
        self.kept2 += kept * kept
        self.seen2 += seen * seen
        self.both += kept * seen

    @property
    def value(self) -> float | None:
        """kept / seen; None where nothing was seen."""
        return self.kept / self.seen if self.seen else None

    def interval(self, units: int, confidence: float = CONFIDENCE) -> Interval | None:
        """Of `units` units, of which these were drawn at random. None: too few of them to tell a spread."""
        if not self.seen:
            return None
        half = self._half(self.units, units, confidence)
        return None if half is None else Interval(self.kept / self.seen, half)

    def needed(self, units: int, half: float, confidence: float = CONFIDENCE) -> int:
        """How many units, more than these, make the interval as narrow as `half`, if they spread as these do."""
        low, high = self.units + 1, max(units, self.units + 1)
        while low < high:  # wider samples are narrower intervals
            middle = (low + high) // 2
            found = self._half(middle, units, confidence)
            if found is not None and found <= half:
                high = middle
            else:
                low = middle + 1
        return min(low, units)

    def _half(self, sample: int, units: int, confidence: float) -> float | None:
        """Half the width of the interval that `sample` units would give with the spread seen in these."""
        if sample >= units:
            return 0.0
        if self.units < 2 or not self.seen:
            return None
        # The residuals are kept - (kept of all / seen of all) x seen; their squares' sum, times (seen of all)**2.
        squares = self.seen**2 * self.kept2 - 2 * self.kept * self.seen * self.both + self.kept**2 * self.seen2
        spread = math.sqrt(squares / (self.units - 1)) / self.seen  # standard deviation of a residual
        mean = self.seen / self.units
        error = spread / mean * math.sqrt((1 - sample / units) / sample)
        return t_quantile((1 + confidence) / 2, sample - 1) * error


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: int) -> float:
    """The quantile of Student's t with `df` degrees of freedom, for 0.9 <= p < 1; right to 1e-8 of its value."""
    if not 0.9 <= p < 1 or df < 1:
        raise ValueError(f"no t quantile for p={p}, df={df}")
    # Its tail is half an incomplete beta function of x = df / (df + t^2); found by halving in the logarithm of t.
    low, high = 0.0, NormalDist().inv_cdf(p) + 1.0
    while _tail(high, df) > 1 - p:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _tail(middle, df) > 1 - p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tail(t: float, df: int) -> float:
    """P(T > t) for t >= 0."""
    return 0.5 * _beta(df / (df + t * t), df / 2, 0.5)


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            total *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * total / a
