"""Deciding again at size: memory depends on the units at work, not on their number; thousands of units are compacted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.rescore import ROWS_A_UNIT, enlarge
from curation import manifests
from curation.opened import open_run
from curation.rescore import rescore
from curation.run import WAVE
from curation.select import select
from shards.storage import Storage
from tests.curation.deciding import (
    FILTERS,
    TIGHTER,
    checked,
    configure,
    decision_of,
    fresh,
    options,
    units_of,
    write_input,
)
from tests.curation.pairs import image, write_parquet
from tests.curation.runs import bytes_of, run_whole
from tests.curation.test_memory import needs_smaps, peak_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    needs_smaps,
]


@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "written"])
def test_twenty_times_the_units_take_the_same_memory(tmp_path: Path, dry: bool) -> None:
    write_input(tmp_path, 3)
    config = configure(tmp_path)
    opened = run_whole(checked(config))
    peaks = {}
    for units in (20, 400):
        root = tmp_path / f"{units}"
        root.mkdir()
        large = configure(root)
        enlarge(opened, checked(large), Storage.open(str(root / "runs/test")), units * ROWS_A_UNIT)
        more = ["--workers", "2", *(["--dry-run"] if dry else [])]
        peaks[units] = peak_of("rescore", *options(large, TIGHTER), *more, every_s=0.05)
        if not dry:
            decided = open_run(str(decision_of(large, TIGHTER)))
            assert (decided.complete, decided.totals().listed) == (True, units * ROWS_A_UNIT)
    told = {units: f"{peak / 2**20:,.0f} MiB" for units, peak in peaks.items()}
    sys.stderr.write(f"{told}\n")
    assert peaks[400] <= 1.1 * peaks[20], told


def test_thousands_of_units(tmp_path: Path) -> None:
    """More than a wave: manifests are compacted, totals and bytes are those of a fresh run, and going on is quick."""
    units = WAVE + 120
    pictures = [image(64, 64, seed=seed, quality=40) for seed in range(50)]
    rows = [
        {"image": pictures[row % 50], "caption": f"A photo of thing number {row} on a table", "url": f"https://x/{row}"}
        for row in range(2 * units)
    ]
    write_parquet(tmp_path / "in/a.parquet", rows, row_group_size=2)
    settings = {
        "input": {"path": str(tmp_path / "in"), "format": "parquet"},
        "mappers": [],
        "filters": {"text_length": {}, "bright": FILTERS["bright"]},
        "units": {"max_samples": 2},
    }
    config = configure(tmp_path, **settings)
    run_whole(checked(config))
    sets = ("bright.min=128", "text_length.min_words=8")
    profile = checked(config, *sets)
    decided = rescore(profile, workers=2)
    assert (decided.worked, decided.failed, decided.totals.units) == (units, [], units)
    folder = decision_of(config, sets)
    output = Storage.open(str(folder))
    assert [entry.path for entry in output.list("decided", ".parquet")]
    assert len(output.list("decided", ".json")) < manifests.COMPACT_AT
    selected = select(profile, workers=2)
    assert (selected.worked, selected.failed) == (units, [])
    assert [entry.path for entry in output.list("units", ".parquet")]
    expected = fresh(tmp_path / "fresh", config, sets)
    assert bytes_of(folder) == bytes_of(expected)
    assert units_of(folder) == units_of(expected)
    assert decided.totals.reasons == selected.totals.reasons == open_run(str(expected)).totals().reasons
    started = time.monotonic()
    assert (rescore(profile).worked, select(profile).worked) == (0, 0)
    seconds = time.monotonic() - started
    # A unit that is done again costs 40 ms and more; one that is only looked up a hundredth of that.
    assert seconds < units * 0.02, seconds
    lost = sorted((folder / "ledger").iterdir())[7]
    lost.unlink()
    assert (rescore(profile).worked, select(profile).worked) == (1, 1)
    assert bytes_of(folder) == bytes_of(expected)
