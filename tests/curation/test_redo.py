"""`run --redo`: units whose files are damaged or lost are made again, and nothing else is."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curation import manifests
from curation.opened import open_run
from curation.plan import RunError
from curation.run import run
from shards.check import check
from shards.storage import Storage
from tests.curation.deciding import (
    checked,
    configure,
    copied,
    must_be_clean,
    options,
    same_as,
    units_of,
    write_input,
)
from tests.curation.processes import driver
from tests.curation.runs import run_whole

UNITS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    write_input(folder, UNITS)
    run_whole(checked(configure(folder)))
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    return copied(base, tmp_path / "copy")


@pytest.fixture
def root(config: Path) -> Path:
    return config.parent / "runs/test"


def shorts(root: Path) -> list[str]:
    return [unit["unit_id"][:12] for unit in units_of(root)]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("compacted", [False, True], ids=["loose", "compacted"])
def test_damaged_files_are_made_again(base: Path, config: Path, root: Path, compacted: bool) -> None:
    """One unit's ledger is damaged, one's shard is gone, one's index is cut off: all are named, none else is touched."""
    if compacted:
        assert manifests.compact(Storage.open(str(root)), at=1) == UNITS
    names = shorts(root)
    flipped(root / f"ledger/{names[0]}.parquet")
    (root / f"shards/{names[1]}.tar").unlink()
    truncated(root / f"shards/{names[2]}.tar.idx")
    assert {fault.path.partition("/")[2][:12] for fault in check(Storage.open(str(root)), workers=1).faults} == {
        *names[:3]
    }
    untouched = (root / f"ledger/{names[3]}.parquet").stat().st_mtime_ns
    result = run(checked(config), redo=[names[0], names[1][:8], names[2], names[2]])
    assert (result.worked, result.failed) == (3, [])
    assert (root / f"ledger/{names[3]}.parquet").stat().st_mtime_ns == untouched
    same_as(root, base / "runs/test")


def spoilt(unit: dict[str, Any]) -> dict[str, Any]:
    return {**unit, "kept": unit["kept"] + 1}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("compacted", [False, True], ids=["loose", "compacted"])
def test_a_unit_manifest_that_was_changed_by_hand(base: Path, config: Path, root: Path, compacted: bool) -> None:
    """Its own hash tells; in a compacted file the other units of it stay."""
    path = sorted((root / "units").iterdir())[1]
    path.write_text(json.dumps(spoilt(json.loads(path.read_text()))))
    output = Storage.open(str(root))
    if compacted:
        assert manifests.compact(output, at=1) == UNITS
    (root / "manifest.json").unlink()
    run(checked(config))
    told = [f"{fault.path} {fault.what}" for fault in check(output, workers=1).faults]
    assert any("its own sha256 differs" in line and path.stem in line for line in told)
    assert run(checked(config), redo=[path.stem]).worked == 1
    same_as(root, base / "runs/test")


@pytest.mark.usefixtures("ray_local")
def test_a_compacted_file_that_is_damaged(base: Path, config: Path, root: Path) -> None:
    """One line that says what to do; then its units, and only they, run again."""
    output = Storage.open(str(root))
    assert manifests.compact(output, at=1) == UNITS
    (merged,) = (root / "units").iterdir()
    truncated(merged)
    with pytest.raises(manifests.ManifestError, match="cannot be read .*delete it, and its units run again") as caught:
        run(checked(config), redo=["0" * 12])
    assert "\n" not in str(caught.value)
    merged.unlink()
    assert run(checked(config)).worked == UNITS
    same_as(root, base / "runs/test")


REFUSED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "unknown": (lambda names: ["ffffffffffff"], "--redo ffffffffffff: 0 units of test begin so: give the first 12 digits"),
    "one of two is unknown": (lambda names: [names[0], "nobody"], "--redo nobody: 0 units of test begin so"),
    "too short": (lambda names: [names[0][:5]], "--redo .*: 1 unit of test begins so: give the first 12 digits"),
    "empty": (lambda names: [""], f"--redo : {UNITS} units of test begin so: give the first 12 digits"),
    "a file's name": (lambda names: [f"{names[0]}.tar"], "--redo .*.tar: 0 units of test begin so"),
}  # fmt: skip


@pytest.mark.parametrize(("named", "line"), REFUSED.values(), ids=REFUSED)
def test_units_that_are_not_there_are_one_line_and_nothing_is_touched(
    config: Path, root: Path, named: Callable[[list[str]], list[str]], line: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(RunError, match=line) as caught:
        run(checked(config), redo=named(shorts(root)))
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_unit_beyond_the_limit_is_not_forgotten(config: Path, root: Path) -> None:
    """It would be taken back and not made again."""
    last = max(units_of(root), key=lambda unit: str(unit["input"]["path"]))["unit_id"][:12]
    with pytest.raises(RunError, match="lies beyond --limit, and would be left out: leave --limit out"):
        run(checked(config), limit=1, redo=[last])
    assert open_run(str(root)).complete


@pytest.mark.usefixtures("ray_local")
def test_a_unit_that_cannot_be_made_again_is_told_and_the_run_is_not_whole(
    base: Path, config: Path, root: Path
) -> None:
    """A file is in the way of its ledger part. Its numbers do not count, until the next run makes it."""
    unit = units_of(root)[1]
    part = root / f"ledger/{unit['unit_id'][:12]}.parquet"
    part.unlink()
    part.mkdir()
    (failed,) = run(checked(config), redo=[unit["unit_id"][:12]]).failed
    assert str(part) in (failed.error or "")
    opened = open_run(str(root))
    assert not opened.complete
    assert opened.totals().units == UNITS - 1
    part.rmdir()
    assert run(checked(config)).worked == 1
    same_as(root, base / "runs/test")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments(base: Path, config: Path, root: Path, tmp_path: Path) -> None:
    """What was taken back is made again by the next run, with or without --redo."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = shorts(root)
    for kill in range(15):
        arguments = ["run", *options(config, ()), *(part for name in names[:3] for part in ("--redo", name))]
        with driver(tmp_path / f"{kill}.log", *arguments) as victim:
            time.sleep(chance.uniform(0.5, 12 if kill % 3 else 3))
            victim.send(signal.SIGKILL)
            victim.end()
        # Never whole while a unit is lacking.
        assert not open_run(str(root)).complete or len(units_of(root)) == UNITS
    with driver(tmp_path / "last.log", "run", *options(config, ())) as last:
        assert last.end() == 0, last.said
    must_be_clean(root)
    same_as(root, base / "runs/test")
