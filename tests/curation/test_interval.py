"""The interval holds what it promises: by theory where there is one, by simulation elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.interval import Interval, Ratio, t_quantile

UNITS = st.lists(
    st.integers(0, 2_000).flatmap(lambda seen: st.tuples(st.integers(0, seen), st.just(seen))), min_size=2, max_size=30
)


@pytest.mark.parametrize("p", [0.9, 0.95, 0.975, 0.99, 0.9995])
def test_t_quantiles_are_those_of_scipy(p: float) -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not a library of ours")
    for df in (1, 2, 3, 4, 7, 12, 30, 99, 1_000, 50_000, 1_000_000):
        assert t_quantile(p, df) == pytest.approx(scipy.t.ppf(p, df), rel=1e-8)


def test_t_quantiles_of_the_tables() -> None:
    known = {1: 12.7062, 2: 4.3027, 4: 2.7764, 10: 2.2281, 30: 2.0423, 120: 1.9799}
    assert {df: round(t_quantile(0.975, df), 4) for df in known} == known
    for p, df in ((0.3, 5), (1.0, 5), (0.95, 0)):
        with pytest.raises(ValueError, match="no t quantile"):
            t_quantile(p, df)


@settings(deadline=None)
@given(UNITS, st.integers(0, 40))
def test_the_interval_is_the_ratio_estimators(units: list[tuple[int, int]], more: int) -> None:
    """Against the formula as books have it (Cochran, Sampling Techniques, 6.4), in floating point."""
    total = len(units) + more
    found = Ratio.of(units).interval(total)
    kept, seen = (np.array(column, dtype=float) for column in zip(*units, strict=True))
    if not seen.sum():
        assert found is None
        return
    assert found is not None
    share = kept.sum() / seen.sum()
    assert found.estimate == pytest.approx(share)
    variance = np.sum((kept - share * seen) ** 2) / (len(units) - 1)
    error = math.sqrt(variance * (1 - len(units) / total) / len(units)) / seen.mean()
    assert found.half == pytest.approx(t_quantile(0.975, len(units) - 1) * error, rel=1e-6, abs=1e-9)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert (found.half == 0) >= (more == 0)


def test_no_spread_no_interval() -> None:
    assert Ratio().interval(5) is None
    assert Ratio.of([(0, 0), (0, 0)]).interval(5) is None
    assert Ratio.of([(3, 10)]).interval(5) is None
    assert Ratio.of([(3, 10)]).interval(1) == Interval(0.3, 0.0)
    assert Ratio.of([(3, 10), (3, 10)]).interval(1000) == Interval(0.3, 0.0)
    assert Ratio.of([(0, 10), (10, 10)]).interval(1000) == Interval(0.5, pytest.approx(6.35, abs=0.01))
    assert (Interval(0.1, 0.3).low, Interval(0.9, 0.3).high) == (0, 1)


@settings(deadline=None)
@given(UNITS, st.integers(1, 300), st.floats(0.0005, 0.2))
def test_as_many_units_as_needed_and_no_more(units: list[tuple[int, int]], more: int, half: float) -> None:
    ratio, total = Ratio.of(units), len(units) + more
    needed = ratio.needed(total, half)
    assert ratio.units < needed <= total
    widths = [ratio._half(size, total, 0.95) for size in range(ratio.units + 1, total + 1)]
    enough = [width is not None and width <= half for width in widths]
    assert enough == sorted(enough)
    assert needed == ratio.units + 1 + enough.index(True)


@pytest.mark.parametrize(
    ("population", "sizes", "between", "sample"),
    [
        (60, (200, 260), 0.0, 8),
        (60, (200, 260), 0.05, 8),
        (300, (4_000, 9_000), 0.02, 12),
        (300, (500, 9_000), 0.03, 40),
    ],
)
def test_coverage(population: int, sizes: tuple[int, int], between: float, sample: int) -> None:
    """Clusters that differ, of equal and of uneven size: 95 % of the intervals hold the population's own retention."""
    rng = np.random.default_rng(population + sample)
    held, rounds = 0, 1_000
    for _ in range(rounds):
        seen = rng.integers(*sizes, size=population)
        kept = rng.binomial(seen, np.clip(0.28 + between * rng.standard_normal(population), 0, 1))
        picked = rng.choice(population, sample, replace=False)
        found = Ratio.of(zip(kept[picked].tolist(), seen[picked].tolist(), strict=True)).interval(population)
        assert found is not None
        held += found.low <= kept.sum() / seen.sum() <= found.high
    assert 0.92 < held / rounds < 0.98
