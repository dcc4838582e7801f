"""Deciding again on a Ray cluster: the bytes of one machine's work; what dies is tried again, what fails is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from curation.opened import open_run
from curation.rescore import rescore
from curation.select import select
from curation.tasks import MAX_ATTEMPTS
from tests.curation.deciding import (
    FILTERS,
    LOOSER,
    checked,
    configure,
    copied,
    decision_of,
    fresh,
    options,
    same_as,
    state_of,
    units_of,
    write_input,
)
from tests.curation.pairs import flat, good_pairs, write_tar
from tests.curation.processes import driver
from tests.curation.runs import run_whole

pytestmark = pytest.mark.usefixtures("ray_local")

UNITS = 5
ODD = 7  # samples of one unit, which no other one has


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    write_input(folder, UNITS - 1)
    write_tar(folder / "in/odd.tar", flat(good_pairs(ODD, 700)))
    config = configure(folder, filters=trapped(folder.parent))
    run_whole(checked(config))
    fresh(folder.parent / "expected", config, LOOSER)
    return folder


def trapped(folder: Path) -> dict[str, object]:
    return {**FILTERS, "bright": {"filter": "tests.curation.plugins:Trap", "min": 124.0, "folder": str(folder)}}


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    for path in base.parent.glob("met-*"):
        path.unlink()
    (base.parent / "trap").unlink(missing_ok=True)
    return copied(base, tmp_path / "copy", filters=trapped(base.parent))


def test_the_bytes_of_one_machine(base: Path, config: Path) -> None:
    before = state_of(config.parent / "runs/test")
    profile = checked(config, *LOOSER)
    assert rescore(profile, address="auto").worked == UNITS
    assert select(profile, address="auto").worked == UNITS
    same_as(decision_of(config, LOOSER), base.parent / "expected/test")
    assert state_of(config.parent / "runs/test") == before
    assert rescore(profile, address="auto").worked == select(profile, address="auto").worked == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rescore", "select"])
def test_commands_that_are_given_an_address_and_killed(base: Path, config: Path, tmp_path: Path, command: str) -> None:
    """A driver of its own on this cluster, killed while tasks are at work; the next one ends in the same bytes."""
    import ray

    address = ray.get_runtime_context().gcs_address
    folder = decision_of(config, LOOSER)
    if command == "select":
        rescore(checked(config, *LOOSER))
    where = folder / {"rescore": "decided", "select": "units"}[command]
    with driver(tmp_path / "killed.log", command, *options(config, LOOSER), "--address", address) as killed:
        killed.wait_until(lambda: list(where.glob("*.json")), "the first unit")
        killed.send(signal.SIGKILL)
        killed.end()
    with driver(tmp_path / "last.log", command, *options(config, LOOSER), "--address", address) as last:
        assert last.end() == 0, last.said
    select(checked(config, *LOOSER))
    same_as(folder, base.parent / "expected/test")
    with driver(tmp_path / "wrong.log", command, *options(config, LOOSER), "--address", "localhost:1") as wrong:
        assert wrong.end() in (0, 1)  # nothing to do needs no cluster
        assert "Traceback" not in wrong.said


def test_a_unit_whose_worker_dies_is_tried_again(base: Path, config: Path) -> None:
    (base.parent / "trap").write_text(f"{ODD} once")
    profile = checked(config, *LOOSER)
    decided = rescore(profile, address="auto")
    assert (decided.failed, decided.worked) == ([], UNITS)
    assert len(list(base.parent.glob("met-*"))) > 1
    select(profile, address="auto")
    same_as(decision_of(config, LOOSER), base.parent / "expected/test")


@pytest.mark.parametrize(
    ("what", "error"),
    [("dies", f"its worker died {MAX_ATTEMPTS} times; see Ray's logs"), ("raises", "ZeroDivisionError: trapped")],
)
def test_a_unit_that_fails_is_told_and_the_others_go_on(base: Path, config: Path, what: str, error: str) -> None:
    (base.parent / "trap").write_text(f"{ODD} {what}")
    profile = checked(config, *LOOSER)
    (odd,) = [unit["unit_id"] for unit in units_of(config.parent / "runs/test") if unit["input"]["path"] == "odd.tar"]
    decided = rescore(profile, address="auto")
    assert decided.failed == [f"unit {odd[:12]}: {error}"]
    assert decided.totals.units == UNITS - 1
    assert not open_run(str(decision_of(config, LOOSER))).complete
    selected = select(profile, address="auto", partial=True)
    assert (selected.worked, selected.failed) == (UNITS - 1, [])
    (base.parent / "trap").unlink()
    assert rescore(profile, address="auto").worked == 1
    assert select(profile, address="auto").worked == 1
    same_as(decision_of(config, LOOSER), base.parent / "expected/test")


def test_a_unit_whose_files_are_damaged_fails_alone(base: Path, config: Path) -> None:
    """The run's ledger part of one unit, the run's shard of another."""
    root = config.parent / "runs/test"
    first, second = sorted((root / "ledger").iterdir())[:2]
    kept = first.read_bytes()
    first.write_bytes(kept[:-1])
    profile = checked(config, *LOOSER)
    (told,) = rescore(profile, address="auto").failed
    assert told.startswith(f"unit {first.stem}: {first}: damaged")
    first.write_bytes(kept)
    assert rescore(profile, address="auto").worked == 1
    shard = root / f"shards/{second.stem}.tar"
    os.rename(shard, config.parent / "away")
    (told,) = select(profile, address="auto").failed
    assert told.startswith(f"unit {second.stem}: {shard}: missing, though its unit is committed: make its unit again")
    os.rename(config.parent / "away", shard)
    assert select(profile, address="auto").worked == 1
    same_as(decision_of(config, LOOSER), base.parent / "expected/test")
