"""Whole jobs on a real S3 API, undisturbed, disturbed and killed: the bytes are those of a local run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.config import load
from curation.raw import Raw
from curation.sources import read_unit
from curation.units import Unit, plan_units
from shards.object_store import PATIENCE_VARIABLE
from shards.window import BLOCK_BYTES
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_config, write_parquet, write_tar
from tests.curation.processes import driver
from tests.s3 import KEY, SECRET, Fault, Request, Store, serving_here

FILES = 5
# What a run leaves that must be the same bytes each time; unit manifests also say how long the unit took.
SAME = ("ledger/", "shards/", "samples/", "manifest.json", "shards.txt")
PATIENCE_S = 8


@pytest.fixture(scope="module")
def _store() -> Iterator[Store]:
    with serving_here(**{PATIENCE_VARIABLE: str(PATIENCE_S)}) as store:
        yield store


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    yield _store
    _store.proxy.clear()


_COMMANDS = """
import contextlib, io, json, sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
from curation.__main__ import main
print(json.dumps(ray._private.worker._global_node.get_session_dir_path()), flush=True)
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(json.loads(line))
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


class Commands:
    """The command line in a process whose Ray lives from one command to the next, with the store's environment."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMANDS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            )
        self.session = Path(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __call__(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit status, and what was said on both streams."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        status, said = self._answer()
        return status, said

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def command(_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("commands") / "log")
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def expected(_store: Store, command: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The input on a local disk under `in/`, and what a local run makes of it."""
    folder = tmp_path_factory.mktemp("local")
    for number in range(FILES):
        bad = [pair(f"x{number}", "no", image()), pair(f"y{number}", "A good caption of a picture", image()[:700])]
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(4, number * 10)) + flat(bad))
    noise = np.random.default_rng(7).bytes(7 << 20)  # a shard that goes up in parts
    write_tar(folder / "in/large.tar", flat([pair("big", "A good caption of a large thing", image() + noise)]))
    status, said = command("run", "--config", write_config(folder, readable="header"))
    assert status == 0, said
    return files_of(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Place:
    """A bucket with the input, and the configuration that reads it and writes beside it."""

    def __init__(self, store: Store, folder: Path, files: Mapping[str, bytes]) -> None:
        self.store, self.bucket = store, store.bucket()
        store.put(self.bucket, {name: data for name, data in files.items() if name.startswith("in/")})
        self.config = write_config(
            folder,
            readable="header",
            input={"path": f"s3://{self.bucket}/in", "format": "webdataset"},
            output={"path": f"s3://{self.bucket}/runs"},
        )

    def made(self) -> dict[str, bytes]:
        """All objects below the run's folder, but for the empty ones that pyarrow leaves for a folder it emptied."""
        found = self.store.objects(self.bucket, "runs/test/")
        folders = {name for name in found if not name or name.endswith("/")}
        assert not any(found[name] for name in folders)
        return {name: data for name, data in found.items() if name not in folders}

    def must_be(self, expected: Mapping[str, bytes]) -> None:
        """The same bytes under the same names as the local run; nothing half, temporary or unfinished."""
        wanted = {name.removeprefix("runs/test/"): data for name, data in expected.items() if name.startswith("runs/")}
        made = self.made()
        assert {name: data for name, data in made.items() if name.startswith(SAME)} == {
            name: data for name, data in wanted.items() if name.startswith(SAME)
        }
        assert {name: _work(data) for name, data in made.items() if name.startswith("units/")} == {
            name: _work(data) for name, data in wanted.items() if name.startswith("units/")
        }
        assert not [name for name in made if name.startswith(("attempts/", "failed/")) or "tmp" in name]
        assert {name.partition("/")[0] for name in made} == {name.partition("/")[0] for name in wanted}

    def writes(self) -> list[Request]:
        """What the log has of successful writes below the run's folder; a file in parts counts when it is complete."""
        return [
            request
            for request in self.store.proxy.log
            if request.path.startswith(f"/{self.bucket}/runs/")
            and request.kind in ("PUT", "COMPLETE", "COPY")
            and request.status == 200
        ]

    def written(self) -> list[str]:
        return [request.path.removeprefix(f"/{self.bucket}/runs/test/") for request in self.writes()]


def _work(manifest: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(manifest).items() if name not in ("seconds", "sha256")}


@pytest.fixture
def place(store: Store, tmp_path: Path, expected: dict[str, bytes]) -> Place:
    return Place(store, tmp_path, expected)


# ---------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_whole_job_from_the_command_line(
    store: Store, place: Place, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """plan, run and stats as processes: bytes, order and number of the writes, and nothing of the credentials."""
    said = ""
    for name in ("plan", "run", "stats"):
        store.proxy.clear()
        done = subprocess.run(
            [sys.executable, "-m", "curation", name, "--config", place.config],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
        if name != "run":
            assert place.writes() == []
            continue
        place.must_be(expected)
        written = place.written()
        assert not [request for request in store.proxy.log if request.kind == "COPY"]
        data = [path for path in written if path.startswith((*SAME, "units/"))]
        assert len(data) == len(set(data))  # one upload a file
        parts = {request.path for request in place.writes() if request.kind == "COMPLETE"}
        assert len(parts) == 1
        assert next(iter(parts)).endswith(".tar")
        for path in data:
            short = path.partition("/")[2].partition(".")[0]
            if path.startswith("units/"):
                last = max(index for index, other in enumerate(data) if other.partition("/")[2].startswith(short))
                assert data[last] == path
        assert data[-2:] == ["shards.txt", "manifest.json"]
        assert store.uploads(place.bucket) == []
    for where, data_of in {**place.made(), "said": said.encode(), "config": place.config.read_bytes()}.items():
        assert SECRET.encode() not in data_of, where
        assert KEY.encode() not in data_of, where


@pytest.mark.slow
def test_a_killed_driver_s_run_is_finished_by_the_next(
    store: Store, place: Place, command: Commands, expected: dict[str, bytes], tmp_path: Path
) -> None:
    # Slow enough to be met in the middle.
    store.proxy.choose = lambda method, path, number: Fault(wait_s=0.3) if "/samples/" in path else None
    with driver(tmp_path / "log", "run", "--config", place.config) as killed:
        killed.wait_until(lambda: any("units/" in path for path in place.written()), "the first unit")
        killed.send(signal.SIGKILL)
        assert killed.end() == -signal.SIGKILL
    assert "manifest.json" not in place.made()
    store.proxy.clear()
    status, said = command("run", "--config", place.config)
    assert status == 0, said
    place.must_be(expected)


# ---------------------------------------------------------------- faults


def bad_weather(method: str, path: str, number: int) -> Fault | None:
    """Every eighth request is hurt, one way after the other."""
    faults = [Fault(status=503), Fault(status=500), Fault(wait_s=0.3)]
    faults += [Fault(cut_request=True) if method == "PUT" else Fault(cut_response=True)]
    return faults[number // 8 % 4] if number % 8 == 7 else None


def test_a_job_in_bad_weather(store: Store, place: Place, command: Commands, expected: dict[str, bytes]) -> None:
    store.proxy.choose = bad_weather
    status, said = command("run", "--config", place.config)
    assert status == 0, said
    hurt = [request.status for request in store.proxy.log if request.status in (0, 500, 503)]
    assert {0, 500, 503} <= set(hurt)
    store.proxy.clear()
    place.must_be(expected)
    logs = [path for path in (command.session / "logs").rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_store_that_throttles_and_then_goes_away_in_mid_run(
    store: Store, place: Place, command: Commands, expected: dict[str, bytes]
) -> None:
    begun = threading.Event()

    def disturb() -> None:
        begun.wait()
        store.proxy.choose = lambda method, path, number: Fault(status=503)
        time.sleep(1.5)
        with store.proxy.refuse():
            store.proxy.choose = None
            time.sleep(1.5)

    def choose(method: str, path: str, number: int) -> Fault | None:
        if "/ledger/" in path:
            begun.set()
        return None

    thread = threading.Thread(target=disturb)
    thread.start()
    store.proxy.choose = choose
    try:
        status, said = command("run", "--config", place.config)
    finally:
        begun.set()
        thread.join()
    assert status == 0, said
    assert any(request.status == 503 for request in store.proxy.log)
    store.proxy.clear()
    place.must_be(expected)


def broken_unit(method: str, path: str, number: int) -> Fault | None:
    return Fault(status=503) if "/ledger/" in path and path.rpartition("/")[2][0] in "01234567" else None


@pytest.mark.slow
def test_units_that_cannot_be_written_fail_and_are_finished_later(
    store: Store, place: Place, command: Commands, expected: dict[str, bytes]
) -> None:
    shorts = [name.partition("/")[2] for name in place.made() or expected if "ledger/" in name]
    wanted = sum(short.rpartition("/")[2][0] in "01234567" for short in shorts)
    assert 0 < wanted < FILES + 1
    store.proxy.choose = broken_unit
    status, said = command("run", "--config", place.config)
    assert status == 1
    assert said.count("the object store asks to slow down: use fewer workers, then run again") >= wanted
    assert "Traceback" not in said
    made = place.made()
    failed = [json.loads(data) for name, data in made.items() if name.startswith("failed/")]
    assert len(failed) == wanted
    assert all("asks to slow down" in record["error"] for record in failed)
    assert sum(name.startswith("units/") for name in made) == FILES + 1 - wanted
    store.proxy.clear()
    status, said = command("run", "--config", place.config)
    assert status == 0, said
    place.must_be(expected)


@pytest.mark.slow
def test_a_store_that_breaks_for_good_ends_the_run_with_one_line(
    store: Store, place: Place, command: Commands, expected: dict[str, bytes]
) -> None:
    broken = threading.Event()

    def choose(method: str, path: str, number: int) -> Fault | None:
        if method == "PUT" and "/units/" in path:
            broken.set()
        return Fault(status=500) if broken.is_set() else None

    store.proxy.choose = choose
    status, said = command("run", "--config", place.config)
    assert status == 1, said
    assert "Traceback" not in said
    assert "the object store has an error of its own: run again later" in said
    assert said.strip().splitlines()[-1].startswith("error: ")
    store.proxy.clear()
    assert "manifest.json" not in place.made()
    status, said = command("run", "--config", place.config)
    assert status == 0, said
    place.must_be(expected)


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("name", "where"),
    [("plan", "input"), ("plan", "output"), ("run", "input"), ("run", "output"), ("stats", "output")],
)
def test_a_bucket_that_is_not_there_is_one_line(command: Commands, place: Place, name: str, where: str) -> None:
    status, said = command(
        name, "--config", place.config, "--set", f"{where}.path=s3://no-such-bucket/x"
    )  # fmt: skip
    assert status == 2
    folder = "s3://no-such-bucket/x" + ("/test" if where == "output" else "")
    assert said == f"error: cannot reach {folder}: there is no such bucket: check its name, and region and endpoint\n"


@pytest.mark.parametrize("where", ["input", "output"])
@pytest.mark.parametrize("address", [f"s3://{KEY}:{SECRET}@bucket/x", f"s3://bucket/x?secret_key={SECRET}"])
def test_credentials_in_the_configuration_are_refused_and_not_repeated(
    command: Commands, place: Place, where: str, address: str
) -> None:
    for name in ("validate", "plan", "run"):
        status, said = command(name, "--config", place.config, *(() if name == "validate" else ("--set", f"{where}.path={address}")))  # fmt: skip
        assert SECRET not in said
        if name != "validate":
            assert status == 2
            assert "credentials" in said
    assert place.made() == {}


# ---------------------------------------------------------------- tars that are cut


def read_all(checked: Any, change: Callable[[Unit], Unit] = lambda unit: unit) -> tuple[list[Unit], list[Any]]:
    storage, units = plan_units(checked)
    raws: list[Raw] = [read_unit(checked, storage, change(Unit.from_json(unit.to_json()))) for unit in units]
    return units, [
        [raw.keys, [None if data is None else bytes(data) for data in raw.images], raw.captions, raw.problems,
         raw.columns, raw.warnings]
        for raw in raws
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "damage"), [("webdataset", ""), ("webdataset", "spoilt"), ("img2dataset", ""), ("img2dataset", "cut")]
)
def test_ranges_of_a_tar_are_read_as_ranges(store: Store, tmp_path: Path, kind: str, damage: str) -> None:
    """The same units and rows as on a local disk, and no byte read more often than told."""
    rows = [{"key": f"{number:05d}", "caption": f"caption {number}", "status": "success"} for number in range(40)]
    # Repeated keys near and far, dots, keys that the side-car does not list, one that the tar does not hold.
    samples = [pair(row["key"], row["caption"], bytes([number]) * 200_000) for number, row in enumerate(rows)]
    samples += [samples[3], samples[30], pair("a.v1", "dot", b"x"), pair("a.v2", "dot", b"x"), samples[3]]
    samples.insert(20, pair("unlisted", "not in the side-car", b"\xff\xd8" * 5_000_000))  # spans blocks
    path = write_tar(tmp_path / "in/a.tar", flat(samples))
    if damage:
        data = bytearray(path.read_bytes())
        data[17_000_000:] = b"" if damage == "cut" else b"\xff" * len(data[17_000_000:])
        path.write_bytes(data)
    write_parquet(tmp_path / "in/a.parquet", [*rows[:35], {**rows[0], "key": "gone"}, {**rows[3], "caption": "again"}])
    size = path.stat().st_size
    settings: dict[str, Any] = {"units": {"max_samples": 6, "max_bytes": 3 << 20}}
    local = profile(tmp_path, kind, **settings)
    bucket = store.bucket()
    store.put(bucket, {name: data for name, data in files_of(tmp_path).items() if name.startswith("in/")})
    remote = profile(tmp_path, kind, **settings, input={"path": f"s3://{bucket}/in", "format": kind})
    units, expected = read_all(local)
    assert len(units) > 5
    store.proxy.clear()
    assert plan_units(remote)[1] == units
    planned = answered(store)
    assert size <= planned < size + (2 << 20)  # one pass, and the first megabyte twice
    store.proxy.clear()
    assert read_all(remote) == (units, expected)
    # Each range once; the first unit of img2dataset walks over the rest for what the side-car lists and the tar lacks.
    # The range that holds no listed key at all walks over what is before it, to see whether the side-car is of this tar.
    passes = 3 if kind == "img2dataset" else 1
    assert answered(store) - planned < passes * size + (1 << 20) * len(units)
    assert max(request.answered for request in store.proxy.log) <= max(BLOCK_BYTES, 11 << 20)
    # Without what planning learned, a range looks for itself.
    for checked in (local, remote):
        assert read_all(checked, lambda unit: Unit(unit.unit_id, unit.path, unit.size, unit.start, unit.stop)) == (
            units,
            expected,
        )


def answered(store: Store) -> int:
    return sum(request.answered for request in store.proxy.log if request.kind == "GET")


_PLAN = """
import resource, sys
from curation.config import load
from curation.units import plan_units
_, units = plan_units(load(sys.argv[1]).profile("test"))
print(len(units), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_planning_a_large_tar_holds_little_of_it(store: Store, tmp_path: Path) -> None:
    sizes = {}
    for megabytes in (100, 700):
        samples = (pair(f"{number:05d}", "caption", bytes(1 << 20)) for number in range(megabytes))
        path = write_tar(tmp_path / f"{megabytes}/a.tar", (member for sample in samples for member in sample))
        bucket = store.bucket()
        store.client.upload_file(str(path), bucket, "in/a.tar")
        shutil.rmtree(path.parent)
        config = write_config(
            tmp_path,
            units={"max_samples": 1000, "max_bytes": 40 << 20},
            input={"path": f"s3://{bucket}/in", "format": "webdataset"},
        )
        done = subprocess.run([sys.executable, "-c", _PLAN, config], capture_output=True, text=True, check=True)
        units, sizes[megabytes] = map(int, done.stdout.split())
        assert units >= megabytes / 40
    assert sizes[700] < sizes[100] + 60, sizes


def test_profiles_name_buckets_as_they_name_folders(place: Place) -> None:
    checked = load(place.config).profile("test")
    assert checked.run_folder == f"s3://{place.bucket}/runs/test"
