"""Runs that are killed, starved and disturbed: each ends in the bytes of an undisturbed run, a row for every sample."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curation import attempts, manifests
from curation.cluster import JobError
from curation.job import Job, Worker
from curation.opened import open_run
from curation.plan import RunError, make_plan
from curation.profile import Profile
from curation.run import run
from curation.units import plan_units
from shards.storage import Storage
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.processes import Driver, arrivals, await_arrivals, driver
from tests.curation.test_unit import files_of, ledger_of
from tests.small_disk import small_disk

pytestmark = pytest.mark.usefixtures("ray_local")

PLUGIN = "tests.curation.plugins:{}".format
SLOW = {
    **CHEAP,
    "slow": {"filter": PLUGIN("Slow"), "seconds": 0.2},
    "pixels": {"filter": PLUGIN("PixelsSlow"), "seconds": 0.1},
}


def some_input(folder: Path, files: int = 3, boom: bool = False) -> int:
    """Tars with three good samples, one dropped and one unreadable each; the last may hold a boom. Gives the samples."""
    for number in range(files):
        bad = [pair("x", "no", image()), pair("y", "A good caption of a picture", image()[:700])]
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(3, number * 10)) + flat(bad))
    if boom:
        write_tar(folder / "in/boom.tar", pair("z", "A caption that goes boom", image()))
    return 5 * files + boom


def same_as_undisturbed(folder: Path, samples: int, **settings: Any) -> None:
    """Compares `folder` with a run of the same input and settings that nothing came in the way of."""
    whole = folder / "undisturbed"
    shutil.copytree(folder / "in", whole / "in")
    result = run(profile(whole, **settings))
    assert not result.failed
    assert files_of(folder) == files_of(whole)
    for name in ("manifest.json", "shards.txt"):
        assert (folder / "runs/test" / name).read_bytes() == (whole / "runs/test" / name).read_bytes()
    rows = ledger_of(folder)
    assert len({row["key"] for row in rows}) == len(rows) == samples
    assert not list((folder / "runs/test/attempts").glob("*"))
    assert not list((folder / "runs/test/failed").glob("*"))
    assert not (folder / "runs/test/lease.json").exists()


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, id="once", marks=pytest.mark.slow),  # dashboard/test_agreement.py kills one in the fast suite
        pytest.param(20, id="20-times", marks=[pytest.mark.slow, pytest.mark.timeout(2400)]),
    ],
)
def test_a_driver_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    """kill -9 in start-up, between and in the middle of units, and of several at the end, when all are committed."""
    units = 4 * kills
    samples = some_input(tmp_path, units)
    config = write_config(tmp_path, filters=SLOW)
    folder = tmp_path / "runs/test/units"
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with ExitStack() as stack:  # whoever a victim leaves behind lives on while the next one begins
        for kill in range(kills):
            victim = stack.enter_context(driver(tmp_path / f"driver-{kill}.log", "run", "--config", config))
            if kill == kills - 1 > 0:
                victim.wait_until(partial(_holds, folder, units), "the last unit")
                time.sleep(chance.uniform(0, 0.1))
            elif kill % 3 == 1:
                victim.wait_until(partial(_says, victim, "starting Ray"), "the start of Ray")
                time.sleep(chance.uniform(0, 6))
            else:
                wanted = chance.randrange(4 * kill + 1, 4 * kill + 4)
                victim.wait_until(partial(_holds, folder, wanted), f"{wanted} units")
                time.sleep(chance.uniform(0, 0.3))
            victim.send(signal.SIGKILL)
            assert victim.end() in (-signal.SIGKILL, 0), victim.said
        result = run(profile(tmp_path, filters=SLOW))
        assert not result.failed
        assert result.totals.units == units
    same_as_undisturbed(tmp_path, samples, filters=SLOW)


def _says(victim: Driver, text: str) -> bool:
    return text in victim.said


def _holds(folder: Path, count: int) -> bool:
    return len(list(folder.glob("*.json"))) >= count


@pytest.mark.slow
def test_sigterm_while_ray_starts(tmp_path: Path) -> None:
    """Ray puts up handlers of its own while it starts, which leave with other statuses."""
    some_input(tmp_path, 30)
    config = write_config(tmp_path, filters=SLOW)
    for number in range(12):
        with driver(tmp_path / f"driver-{number}.log", "run", "--config", config) as victim:
            victim.wait_until(partial(_says, victim, "starting Ray"), "the start of Ray")
            time.sleep(number / 2)
            victim.send(signal.SIGTERM)
            assert victim.end() == 143, victim.said
            assert "Traceback" not in victim.said
        assert not (tmp_path / "runs/test/lease.json").exists()


def disturbed(checked: Profile, gate: Path, disturb: Callable[[], None], **options: Any) -> Any:
    """A run on this process's Ray, while `disturb` is called in a thread; then the gate is opened."""
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            disturb()
        except BaseException as error:  # noqa: BLE001  raised again below
            trouble.append(error)
        finally:
            (gate / "open").touch()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return run(checked, **options)
    finally:
        thread.join()
        if trouble:
            raise trouble[0]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    path.mkdir()
    return path


@pytest.mark.parametrize("plugin", ["Gate", "PixelsGate", "SetupGate"])
def test_a_killed_worker_or_actor_costs_nothing(tmp_path: Path, gate: Path, plugin: str) -> None:
    """kill -9 in the middle of a unit's reading and of its pixels, and in the constructor of the actor."""
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN(plugin), "folder": str(gate)}}
    checked = profile(tmp_path, filters=filters)

    def kill() -> None:
        (first,) = await_arrivals(gate, 1)
        os.kill(first["pid"], signal.SIGKILL)
        await_arrivals(gate, 2)

    result = disturbed(checked, gate, kill)
    assert not result.failed
    assert len({arrival["pid"] for arrival in arrivals(gate)}) == 2
    same_as_undisturbed(tmp_path, samples, filters=filters)


def test_deaths_count_where_the_node_lives(tmp_path: Path) -> None:
    """A unit is tried again when its machines go away, and given up when it alone dies, or takes too many of them."""
    import ray

    some_input(tmp_path, 1)
    checked = profile(tmp_path)
    storage, (unit,) = plan_units(checked)
    output = Storage.open(str(tmp_path / "runs/test"))
    worker = Worker(Job(checked, checked.fingerprints(), storage.uri, output.uri))
    here, gone = ray.get_runtime_context().get_node_id(), "f" * 56

    def tried(*places: str) -> Any:
        attempts.clear(output)
        for number, place in enumerate(places, 1):
            output.write(f"attempts/{unit.short}.read.{number}", place.encode())
        result = worker.attempt(unit, "read", lambda: "done")
        return result if isinstance(result, str) else result.error

    assert tried() == tried(here, here) == tried(gone, gone, gone, gone, here, here) == "done"
    assert not output.list("attempts")
    assert tried(here, gone, here, here) == "its worker died 3 times in the read step; see Ray's logs"
    assert "died 10 times, mostly with its whole machine" in tried(*[gone] * 10)


def test_a_unit_that_fails_runs_again_once_it_is_mended(tmp_path: Path, gate: Path) -> None:
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "moody": {"filter": PLUGIN("Moody"), "folder": str(gate)}}
    checked = profile(tmp_path, filters=filters)
    error = "filter 'moody' failed: ZeroDivisionError: not before it is mended"
    assert [outcome.error for outcome in run(checked).failed] == [error]
    (record,) = manifests.failures(Storage.open(str(tmp_path / "runs/test")))
    assert (record["input"], record["error"]) == ("boom.tar", error)
    assert not list((tmp_path / "runs/test/attempts").glob("*"))
    assert not open_run(checked.run_folder).complete
    (gate / "open").touch()
    after = run(checked)
    assert (after.worked, after.failed) == (1, [])
    opened = open_run(checked.run_folder)
    assert (opened.failures(), opened.complete) == ([], True)
    # A driver killed between a commit and the end of its record under failed/: the next run clears it.
    Storage.open(str(tmp_path / "runs/test")).write(
        f"failed/{record['unit_id'][:12]}.json", json.dumps(record).encode()
    )
    assert run(checked).worked == 0
    same_as_undisturbed(tmp_path, samples, filters=filters)


def test_too_many_failed_units_stop_the_run(tmp_path: Path, gate: Path) -> None:
    some_input(tmp_path, 2)
    for number in range(6):
        write_tar(tmp_path / f"in/boom{number}.tar", pair("z", "A caption that goes boom", image(seed=number)))
    filters = {**CHEAP, "moody": {"filter": PLUGIN("Moody"), "folder": str(gate)}}
    checked = profile(tmp_path, filters=filters)
    with pytest.raises(JobError, match=r"stopped: 3 units failed, --max-failed-units allows 2; .* 'moody'") as caught:
        run(checked, max_failed_units=2)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "runs/test/lease.json").exists()
    assert len(run(checked, max_failed_units=6).failed) == 6
    (gate / "open").touch()
    assert not run(checked, max_failed_units=0).failed
    same_as_undisturbed(tmp_path, 16, filters=filters)


def test_replace_takes_away_what_has_left_the_input(tmp_path: Path) -> None:
    """A file that changed and one that went; some of the units stand in a compacted file, one was half committed."""
    samples = some_input(tmp_path, 4)
    checked = profile(tmp_path)
    run(checked, limit=15)
    output = Storage.open(str(tmp_path / "runs/test"))
    assert manifests.compact(output, at=3) == 3
    run(checked)
    write_tar(tmp_path / "in/00001.tar", flat(good_pairs(9, 70)))
    (tmp_path / "in/00003.tar").unlink()
    with pytest.raises(
        RunError, match="2 of its 4 committed units are no longer in .*: the input changed; .*--replace"
    ):
        run(checked)
    result = run(checked, replace=True)
    assert (result.worked, result.totals.units) == (1, 3)
    same_as_undisturbed(tmp_path, samples - 5 + 4)
    # Committed to the ledger but not whole when its driver was killed, and then its input went: no flag is needed.
    orphan = plan_units(checked)[1][0]
    (tmp_path / f"runs/test/units/{orphan.short}.json").unlink(missing_ok=True)
    manifests.forget(output, {orphan.unit_id})
    (tmp_path / "in" / orphan.path).unlink()
    assert run(checked).worked == 0
    shutil.rmtree(tmp_path / "undisturbed")
    same_as_undisturbed(tmp_path, samples - 5 + 4 - 5)


@pytest.mark.parametrize("deletion", [2, 3, 4, 6])
def test_a_replacing_run_killed_in_the_middle_is_finished_by_the_next(tmp_path: Path, deletion: int) -> None:
    """The real command dies before its n-th deletion: of the data set's files, the unit's manifest, its other files."""
    samples = some_input(tmp_path, 3)
    config = write_config(tmp_path)
    run(profile(tmp_path))
    (tmp_path / "in/00001.tar").unlink()
    code = (
        "import itertools, os, sys; from curation.__main__ import main; from shards.storage import Storage\n"
        f"delete, calls = Storage.delete, itertools.count(1)\n"
        f"Storage.delete = lambda *given: os._exit(9) if next(calls) == {deletion} else delete(*given)\n"
        "main(sys.argv[1:])"
    )
    with driver(tmp_path / "killed.log", "run", "--replace", "--config", config, code=("-c", code)) as killed:
        assert killed.end() == 9, killed.said
    assert not (tmp_path / "runs/test/manifest.json").exists()
    manifest_stands = deletion <= 3
    assert len(list((tmp_path / "runs/test/units").glob("*"))) == 2 + manifest_stands
    assert len(ledger_of(tmp_path)) == samples - (0 if deletion <= 4 else 5)
    if manifest_stands:
        with pytest.raises(RunError, match="--replace"):
            run(profile(tmp_path))
    assert run(profile(tmp_path), replace=manifest_stands).worked == 0
    same_as_undisturbed(tmp_path, samples - 5)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "runs", "64m") as disk:
        yield disk


def interrupted_writing(tmp_path: Path, gate: Path, spoil: Callable[[], None], mend: Callable[[], None]) -> list[str]:
    """A run whose output is spoilt while a unit is being scored, and mended after; gives the errors of its units."""
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate), "always": True}}
    checked = profile(tmp_path, filters=filters)

    def disturb() -> None:
        await_arrivals(gate, 1)
        spoil()

    try:
        errors = [outcome.error or "" for outcome in disturbed(checked, gate, disturb).failed]
    except JobError as error:  # the driver itself could not write its manifest
        errors = [str(error)]
    mend()
    assert not run(checked).failed
    same_as_undisturbed(tmp_path, samples, filters=filters)
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    return errors


def test_a_disk_that_is_full_in_mid_run(tmp_path: Path, gate: Path, mount: Path) -> None:
    filler = mount / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                return

    errors = interrupted_writing(tmp_path, gate, fill, filler.unlink)
    assert errors
    assert all("no space left on the device: free some" in error for error in errors)


def test_permission_lost_in_mid_run(tmp_path: Path, gate: Path, mount: Path) -> None:
    """A file system that turns read-only under the run, as a disk with errors does: root's permissions do not help."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", mount], check=True)

    errors = interrupted_writing(tmp_path, gate, lambda: remount("ro"), lambda: remount("rw"))
    assert errors
    assert all("the file system is read-only: choose another place" in error for error in errors)


def test_a_folder_that_cannot_be_written_in_mid_run(tmp_path: Path, gate: Path) -> None:
    """The ledger's folder loses its write permission; for root, whom that does not hinder, a file is in the way."""
    folder = tmp_path / "runs/test/ledger"

    def spoil() -> None:
        if os.geteuid() == 0:
            folder.write_text("in the way")
        else:
            folder.mkdir()
            folder.chmod(0o500)

    def mend() -> None:
        if os.geteuid() == 0:
            folder.unlink()
        else:
            folder.chmod(0o700)

    errors = interrupted_writing(tmp_path, gate, spoil, mend)
    assert len(errors) == 4
    assert all("cannot write" in error and "ledger" in error for error in errors)


def test_half_written_files_of_dead_runs_are_swept(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    folder = tmp_path / "runs/test/shards"
    ages = {"old": 3000, "recent": 20, "growing": 0}
    for number, (name, age) in enumerate(ages.items()):
        path = folder / f".{name}.tar.{number:032x}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    run(checked)
    assert [path.name.split(".")[1] for path in folder.glob(".*.tmp")] == ["growing"]


def test_two_configurations_in_one_folder_are_refused_while_the_first_is_at_work(tmp_path: Path, gate: Path) -> None:
    some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate)}}
    refused: list[str] = []

    def second() -> None:
        await_arrivals(gate, 1)
        for other in ({"filters": {**filters, "aspect_ratio": {"max": 2.0}}}, {"filters": filters}):
            with pytest.raises(RunError) as caught:
                run(profile(tmp_path, **other))
            refused.append(str(caught.value))

    disturbed(profile(tmp_path, filters=filters), gate, second)
    assert "aspect_ratio.max: 3.0 -> 2.0" in refused[0]
    assert f"another run is at work here (process {os.getpid()} of " in refused[1]
    assert make_plan(profile(tmp_path, filters=filters)).pending == []
