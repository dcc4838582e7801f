"""How near calibration comes to its target, and how often its interval holds: the table of docs/calibration.md.

The population is made of real rows: captions, sizes and shipped similarities of LAION-2B, judged by the real filters.
They are drawn with replacement into files that differ as crawls do (each file's similarities are shifted by a little,
and each file has its own share of rows that other filters drop), then samples are drawn and solved by the code of
`python -m curation calibrate`, and what the whole population keeps with that threshold is compared with the target.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import SHARED
from curation import ledger
from curation.interval import Interval, Ratio
from curation.sampling import Sample, first_size, next_size
from curation.threshold import Scored, scored, solve
from filters.base import Filter, load_filter

FILTERS: dict[str, dict[str, object]] = {
    "text_length": {},
    "language": {},
    "emoji": {},
    "aspect_ratio": {},
    "min_size": {},
    "clip_score": {"column": "similarity", "min": 0.3},
}


@dataclass(frozen=True)
class Kind:
    """A population: files, rows of a file (from, to), standard deviations between files of mean score and survival."""

    name: str
    files: int
    rows: tuple[int, int]
    score: float
    survival: float


KINDS = [
    Kind("small files", 160, (230, 260), 0.003, 0.02),
    Kind("files alike", 400, (9_000, 10_000), 0.001, 0.005),
    Kind("files that differ", 400, (9_000, 10_000), 0.005, 0.05),
    Kind("and in size too", 400, (500, 10_000), 0.005, 0.05),
    Kind("few large files", 40, (9_000, 10_000), 0.003, 0.02),
]


def real_rows() -> tuple[np.ndarray, np.ndarray]:
    """(score of every row, NaN for none; whether it passes all other filters), by the real filters."""
    table = pq.read_table(SHARED / "pairs_text/laion2b_en.parquet")
    samples = pa.table(
        {
            "caption": table.column("caption").cast(pa.large_string()),
            "width": table.column("width").cast(pa.int32()),
            "height": table.column("height").cast(pa.int32()),
            "source.similarity": table.column("similarity"),
        }
    )
    filters: dict[str, Filter] = {name: load_filter(name)(**fields) for name, fields in FILTERS.items()}
    rows = pa.table(
        {f"{name}_{score}": values for name, rule in filters.items() for score, values in rule.score(samples).items()}
    )
    problems = pa.nulls(len(rows), pa.string())
    others = {name: rule for name, rule in filters.items() if name != "clip_score"}
    decision = ledger.decide(rows, others, problems)
    passes = np.asarray(decision.reason.is_null()) & ~np.asarray(decision.unscored)
    # The solver's own reading of the same rows has to agree before it is trusted with simulated ones.
    whole = scored(ledger.with_verdicts(rows, filters, problems), filters, "clip_score")
    if whole.others != passes.sum():
        raise AssertionError(f"{whole.others} rows pass by the solver, {passes.sum()} by the filters")
    return rows.column("clip_score_cosine").to_numpy().astype(np.float32), passes


def population(kind: Kind, rng: np.random.Generator, cosines: np.ndarray, passes: np.ndarray) -> list[Scored]:
    """The files of one population."""
    good = np.flatnonzero(passes)
    files = []
    for _ in range(kind.files):
        seen = int(rng.integers(*kind.rows, endpoint=True))
        share = float(np.clip(len(good) / len(passes) + kind.survival * rng.standard_normal(), 0.02, 0.98))
        others = int(rng.binomial(seen, share))
        scores = cosines[rng.choice(good, others)] + np.float32(kind.score * rng.standard_normal())
        there = np.sort(np.round(scores[~np.isnan(scores)], 4).astype(np.float32))
        files.append(Scored(seen, others, 0, others - len(there), {"": there}, 0))
    return files


def once(files: list[Scored], target: float, sample: Sample, rng: np.random.Generator) -> tuple[float, Interval, int]:
    """(what the whole keeps, the interval promised, files sampled)."""
    order = [files[index] for index in rng.permutation(len(files))]
    size = first_size(len(order), sample)
    while True:
        drawn = order[:size]
        solution = solve(drawn, target, {"": 0.3})
        ratio = Ratio.of((unit.kept(solution.minimums), unit.seen) for unit in drawn)
        interval = ratio.interval(len(order))
        if interval is None:
            raise AssertionError("too few files")
        more = next_size(ratio, interval, len(order), sample)
        if more == size:
            kept = sum(unit.kept(solution.minimums) for unit in files)
            return kept / sum(unit.seen for unit in files), interval, size
        size = more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.calibrate --rounds 200")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="seeds a line (default %(default)s)")
    parser.add_argument("--sample", type=float, default=0.02, metavar="SHARE", help="default %(default)s")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.stderr.write(f"error: {SHARED} is not here: set WINNOW_SHARED_DATA to a folder with pairs_text/\n")
        return 2
    cosines, passes = real_rows()
    columns = ("population", "files x rows", "target", "`--within`", "files sampled", "error: median", "95 %")
    columns += ("runs within 0.5 points", "half the interval", "intervals that hold")
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
    for kind in KINDS:
        files = population(kind, np.random.default_rng(0), cosines, passes)
        for target in (0.14, 0.28):
            for within in (0.5, float("inf")):
                sample = Sample(options.sample, 0, within)
                results = [once(files, target, sample, np.random.default_rng(seed)) for seed in range(options.rounds)]
                errors = np.abs([kept - target for kept, _, _ in results]) * 100
                held = np.mean([one.low - 1e-12 <= kept <= one.high + 1e-12 for kept, one, _ in results])
                cells = (
                    kind.name,
                    f"{kind.files} x {kind.rows[0]:,} to {kind.rows[1]:,}",
                    f"{target:.0%}",
                    "off" if within == float("inf") else f"{within}",
                    f"{np.mean([size for _, _, size in results]):.0f}",
                    f"{np.median(errors):.2f}",
                    f"{np.quantile(errors, 0.95):.2f}",
                    f"{np.mean(errors <= 0.5):.0%}",
                    f"{np.mean([one.half for _, one, _ in results]) * 100:.2f}",
                    f"{held:.0%}",
                )
                sys.stdout.write(f"| {' | '.join(cells)} |\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
