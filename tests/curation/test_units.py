"""Units cover the input exactly once, and their ids depend on the input alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from curation.units import plan_units, unit_id
from shards.storage import StorageError
from tests.curation.pairs import flat, good_pairs, image, profile, write_parquet, write_tar


def test_a_file_within_the_limits_is_one_unit(tmp_path: Path) -> None:
    for name in ("b", "a", "c/d"):
        write_tar(tmp_path / f"in/{name}.tar", flat(good_pairs(2)))
    _, units = plan_units(profile(tmp_path))
    assert [unit.path for unit in units][:2] == ["a.tar", "b.tar"]
    assert all(unit.start is None and unit.samples == 2 for unit in units)


@pytest.mark.parametrize("max_samples", [1, 3, 4, 10, 11])
def test_a_larger_tar_is_cut_at_samples(tmp_path: Path, max_samples: int) -> None:
    path = write_tar(
        tmp_path / "in/a.tar", [*flat(good_pairs(10)), ("pad.jpg", b"\x00" * (2 << 20)), ("pad.txt", b"x")]
    )
    _, units = plan_units(profile(tmp_path, units={"max_samples": max_samples}))
    if max_samples >= 11:
        assert [unit.start for unit in units] == [None]
        return
    assert next(unit.start for unit in units) == 0
    assert [unit.stop for unit in units][-1] == path.stat().st_size
    assert all(left.stop == right.start for left, right in itertools.pairwise(units))
    assert sum(unit.samples or 0 for unit in units) == 11
    assert max(unit.samples or 0 for unit in units) <= max_samples


@pytest.mark.parametrize(("group", "max_samples"), [(3, 7), (100, 7), (1, 1), (7, 100), (10, 3)])
def test_parquet_is_cut_by_rows(tmp_path: Path, group: int, max_samples: int) -> None:
    rows = [{"jpg": image(seed=index), "caption": "x"} for index in range(23)]
    write_parquet(tmp_path / "in/a.parquet", rows, row_group_size=group)
    _, units = plan_units(profile(tmp_path, "parquet", units={"max_samples": max_samples}))
    if units[0].start is None:
        assert max_samples >= 23
        return
    assert units[0].start == 0
    assert units[-1].stop == 23
    assert all(left.stop == right.start for left, right in itertools.pairwise(units))
    assert max((unit.stop or 0) - (unit.start or 0) for unit in units) <= max_samples


def test_ids_know_profile_path_size_and_range_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "one/in/a.tar", flat(good_pairs(2)))
    write_tar(tmp_path / "two/in/a.tar", flat(good_pairs(2)))
    first = plan_units(profile(tmp_path / "one"))[1][0]
    second = plan_units(profile(tmp_path / "two", filters={"emoji": {}}))[1][0]
    assert first == second
    ids = {
        unit_id("p", "a.tar", 10, None, None),
        unit_id("q", "a.tar", 10, None, None),
        unit_id("p", "b.tar", 10, None, None),
        unit_id("p", "a.tar", 11, None, None),
        unit_id("p", "a.tar", 10, 0, 5),
    }
    assert len(ids) == 5


def test_no_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="in"):
        plan_units(profile(tmp_path))
    (tmp_path / "in").mkdir()
    with pytest.raises(StorageError, match=r"\.tar"):
        plan_units(profile(tmp_path))
