"""Comparisons: the same samples only; what changed sides is what the ledgers say."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import ledger
from curation.commit import write_described
from curation.opened import LedgerError, Opened, open_run
from curation.plan import RunError
from curation.report.compare import compare
from curation.report.data import gather
from curation.run import write_run
from tests.curation.pairs import flat, good_pairs, profile, write_tar
from tests.curation.report.runs import decided, html_of, number, parsed, rows_of, small_run


@pytest.fixture
def run(tmp_path: Path) -> Opened:
    return small_run(tmp_path)


def reasons(opened: Opened) -> dict[str, str | None]:
    rows = (row for path in Path(opened.output.uri).glob("ledger/*.parquet") for row in pq.read_table(path).to_pylist())
    return {row["key"]: row["reason"] for row in rows}


def test_what_changed_sides_is_what_the_ledgers_say(run: Opened, tmp_path: Path) -> None:
    new = decided(tmp_path, {"text_length": {"min_words": 8}, "aspect_ratio": {"max": 4.0}})
    comparison = compare(gather(new), run)
    before, after = reasons(run), reasons(new)
    expected = Counter((before[key], after[key]) for key in before if before[key] != after[key])
    assert comparison.flips == expected
    assert expected[None, "text_length"] > 0
    assert (comparison.units, comparison.rows) == (3, len(before))
    assert comparison.settings == [("text_length.min_words", 3, 8), ("aspect_ratio.max", 3.0, 4.0)]
    assert comparison.scoring == []
    assert comparison.gained == sum(number for (_, now), number in expected.items() if now is None)
    soup = parsed(html_of(new, comparison))
    flips = rows_of(soup, "Reason there → reason here")
    assert number(flips["kept → text_length"][-1]) == expected[None, "text_length"]
    funnels = rows_of(soup, "Funnels side by side")
    here, there = gather(new).totals, gather(run).totals
    assert [funnels["kept"][index] for index in (1, 3, 4)] == [
        str(there.kept),
        str(here.kept),
        f"{here.kept - there.kept:+,}".replace("-", "−"),
    ]
    total = sum(expected.values())
    words = f"{total} samples have another reason here than there: newly kept {comparison.gained}, no longer kept"
    assert f"{words} {comparison.lost} (" in soup.get_text()
    assert rows_of(soup, "Thresholds that differ")["aspect_ratio.max"] == ["3.0", "4.0"]
    assert f"{(here.retention - there.retention) * 100:+.2f} points" in soup.get_text()  # type: ignore[operator]


def test_the_other_way_around_is_the_same_turned(run: Opened, tmp_path: Path) -> None:
    new = decided(tmp_path, {"text_length": {"min_words": 6}})
    there, here = compare(gather(new), run), compare(gather(run), new)
    assert there.flips == Counter({(now, was): count for (was, now), count in here.flips.items()})
    assert (there.gained, there.lost) == (here.lost, here.gained)


def test_decisions_of_the_same_verdicts_have_no_flips(run: Opened, tmp_path: Path) -> None:
    new = decided(tmp_path, {"aspect_ratio": {"max": 3.001}})
    comparison = compare(gather(new), run)
    assert not comparison.flips
    assert "No sample has another reason here than there" in parsed(html_of(new, comparison)).get_text()


def test_what_cannot_be_compared_is_refused_in_one_line(run: Opened, tmp_path: Path) -> None:
    def refused(other: Opened, here: Opened = run) -> str:
        with pytest.raises(RunError) as caught:
            compare(gather(here), other)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be compared with itself" in refused(run)
    (tmp_path / "named").mkdir()
    assert "the one is of profile 'test', the other of 'named'" in refused(small_run(tmp_path / "named", name="named"))
    (tmp_path / "other").mkdir()
    told = refused(small_run(tmp_path / "other", 4))
    assert "they have read different inputs" in told
    assert "(4 units)" in told
    new = decided(tmp_path, {"text_length": {"min_words": 6}})
    next(Path(new.output.uri).glob("decided/*.json")).unlink()
    assert "1 unit of one is not in the other" in refused(new)
    comparison = compare(gather(run), new, partial=True)
    assert comparison.units == 2
    assert "Not in both: 1 unit." in comparison.notes[0]


def test_a_damaged_ledger_is_named(run: Opened, tmp_path: Path) -> None:
    new = decided(tmp_path, {"text_length": {"min_words": 6}})
    path = sorted(Path(new.output.uri).glob("ledger/*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerError, match="damaged, its sha256"):
        compare(gather(run), open_run(new.output.uri))
    path.unlink()
    with pytest.raises(LedgerError, match="missing, though its unit is committed"):
        compare(gather(run), open_run(new.output.uri))


@pytest.mark.slow
def test_five_million_rows_a_minute(tmp_path: Path) -> None:
    """Ledgers of 10,000 rows with every column of a real one; 100 units each, half of the rows change sides."""
    rows, units = 10_000, 100
    for number_ in range(units):
        write_tar(tmp_path / f"in/{number_:05d}.tar", flat(good_pairs(1, number_)))
    checked = profile(tmp_path)
    sides = [small_ledgers(tmp_path, checked, name, rows, turn) for turn, name in enumerate(("one", "two"))]
    shown = gather(sides[0])
    started = time.perf_counter()
    comparison = compare(shown, sides[1])
    seconds = time.perf_counter() - started
    assert comparison.rows == rows * units
    assert sum(comparison.flips.values()) == rows * units // 2
    rate = rows * units / seconds * 60
    print(f"{rate:,.0f} rows a minute")
    assert rate > 5e6


def small_ledgers(folder: Path, checked: object, name: str, rows: int, turn: int) -> Opened:
    """A run whose unit manifests and ledger parts are those of one unit, made large."""
    from curation.plan import make_plan

    plan = make_plan(profile(folder, output={"path": str(folder / name)}))
    write_run(plan)
    output, filters = plan.output, plan.profile.filters
    random = np.random.default_rng(turn)
    model: dict[str, object] | None = None
    for unit in plan.units:
        columns: dict[str, object] = {}
        for field in ledger.schema(filters):
            if field.name == "key":
                columns["key"] = [f"{unit.short}-{row:06d}" for row in range(rows)]
            elif field.name == "reason":
                half = ["emoji" if turn else None] * (rows // 2)
                columns["reason"] = half + ["min_size"] * (rows - len(half))
            elif field.name == "failed":
                columns["failed"] = [[]] * rows
            elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
                columns[field.name] = random.integers(0, 2000, rows)
            else:
                columns[field.name] = [f"{field.name} {value:x}" for value in random.integers(0, 2**60, rows)]
        table = pa.table(columns).cast(ledger.schema(filters))
        about = write_described(output, f"ledger/{unit.short}.parquet", ledger.to_parquet(table))
        if model is None:
            from tests.curation.test_unit import run_plainly

            model = run_plainly(profile(folder, output={"path": str(folder / "model")}))[0]
        files = {"ledger": about, "shard": None, "index": None, "samples": None}
        manifest = {
            **model,
            "unit_id": unit.unit_id,
            "decision_fp": plan.prints.decision,
            "listed": rows,
            "files": files,
        }
        output.write(f"units/{unit.short}.json", json.dumps(manifest).encode())
    return open_run(output.uri)
