"""Deciding again on a real S3 API, in fair and in bad weather: the bytes are those of a local disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.export import END, export
from curation.opened import open_run
from curation.plan import RunError
from curation.profile import Profile
from curation.rescore import rescore, score_missing
from curation.select import select
from shards.check import check
from shards.object_store import PATIENCE_VARIABLE
from shards.storage import Storage
from tests.curation.deciding import LOOSER, MISSING, TIGHTER, checked, configure, options, write_input
from tests.curation.processes import driver
from tests.curation.runs import run_whole
from tests.s3 import KEY, SECRET, Fault, Store, serving_here

pytestmark = pytest.mark.slow

UNITS = 3
PATIENCE_S = 8
SAME = ("ledger/", "shards/", "samples/", "manifest.json", "shards.txt", "decision.json", "export/")


@pytest.fixture(scope="module")
def _store() -> Iterator[Store]:
    with serving_here(**{PATIENCE_VARIABLE: str(PATIENCE_S)}) as store:
        yield store


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    yield _store
    _store.proxy.clear()


def decide(profile: Profile, **how: Any) -> str:
    """A decision with shards and exports; where it lies."""
    decided = rescore(profile, **how)
    assert (decided.failed, decided.unscored) == ([], 0)
    selected = select(profile, **how)
    assert selected.failed == []
    assert decided.folder is not None
    opened = open_run(decided.folder)
    export(opened, "kept")
    export(opened, "dropped", rows_a_part=10)
    return decided.folder


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its decisions, on a local disk."""
    folder = tmp_path_factory.mktemp("local")
    write_input(folder, UNITS, samples=4)
    config = configure(folder)
    run_whole(checked(config))
    for sets in (TIGHTER, LOOSER):
        decide(checked(config, *sets))
    return folder


class Place:
    """A bucket with a run and its input, and a configuration that names it."""

    def __init__(self, store: Store, folder: Path, local: Path) -> None:
        self.store, self.bucket, self.local = store, store.bucket(), local
        self.root = f"s3://{self.bucket}/runs/test"
        put = {
            str(path.relative_to(local)): path.read_bytes()
            for path in local.rglob("*")
            if path.is_file() and "decisions" not in path.parts
        }
        store.put(self.bucket, put)
        self.config = configure(
            folder,
            input={"path": f"s3://{self.bucket}/in", "format": "webdataset"},
            output={"path": f"s3://{self.bucket}/runs"},
        )

    def decision(self, sets: tuple[str, ...]) -> str:
        return f"decisions/{checked(self.config, *sets).fingerprints().decision}"

    def made(self, sets: tuple[str, ...]) -> dict[str, bytes]:
        """All objects of a decision, but for the empty ones that pyarrow leaves for a folder it emptied."""
        found = self.store.objects(self.bucket, f"runs/test/{self.decision(sets)}/")
        return {name: data for name, data in found.items() if name and not name.endswith("/")}

    def must_be(self, sets: tuple[str, ...]) -> None:
        """The same bytes under the same names as the local decision; nothing half, temporary or unfinished."""
        folder = self.local / "runs/test" / self.decision(sets)
        wanted = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        made = self.made(sets)
        assert made.keys() == wanted.keys()
        assert {name: data for name, data in made.items() if name.startswith(SAME)} == {
            name: data for name, data in wanted.items() if name.startswith(SAME)
        }
        for name in wanted:
            if name.startswith(("units/", "decided/")):
                assert _work(made[name]) == _work(wanted[name])
        assert self.store.uploads(self.bucket) == []
        report = check(Storage.open(f"{self.root}/{self.decision(sets)}"), workers=1)
        assert (report.faults, report.notes) == ([], [])


def _work(manifest: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(manifest).items() if name not in ("seconds", "sha256")}


@pytest.fixture
def place(store: Store, tmp_path: Path, local: Path) -> Place:
    return Place(store, tmp_path, local)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sets", [LOOSER, pytest.param(TIGHTER, marks=pytest.mark.slow)], ids=["looser", "tighter"])
def test_decided_in_a_bucket_as_on_a_disk(place: Place, sets: tuple[str, ...], workers: int) -> None:
    """Also how it writes: each file once, the unit's manifest after what it vouches for, the end marks last."""
    before = place.store.objects(place.bucket, "runs/")
    place.store.proxy.clear()
    folder = decide(checked(place.config, *sets), workers=workers)
    assert folder == f"{place.root}/{place.decision(sets)}"
    log = [request for request in place.store.proxy.log if request.kind in ("PUT", "COMPLETE", "COPY")]
    assert all(request.status == 200 for request in log)
    prefix = f"/{place.bucket}/runs/test/{place.decision(sets)}/"
    assert all(request.path.startswith(prefix) for request in log)
    written = [request.path.removeprefix(prefix) for request in log]
    data = [path for path in written if path.startswith(("ledger", "decided", "shards/", "samples", "units"))]
    assert len(data) == len(set(data))
    for path in data:
        short = path.partition("/")[2].partition(".")[0]
        if path.startswith("decided/"):
            assert data.index(path) > data.index(f"ledger/{short}.parquet")
        if path.startswith("units/"):
            assert data.index(path) > data.index(f"samples/{short}.parquet")
    ended = [path for path in written if path.endswith((END, "decision.json", "manifest.json"))]
    assert ended == ["decision.json", "manifest.json", f"export/kept/{END}", f"export/dropped/{END}"]
    place.must_be(sets)
    profile = checked(place.config, *sets)
    assert (rescore(profile).worked, select(profile).worked) == (0, 0)
    place.must_be(sets)
    after = place.store.objects(place.bucket, "runs/")
    assert {name: data for name, data in after.items() if "/decisions/" not in name} == before
    for where, data_of in after.items():
        assert SECRET.encode() not in data_of, where
        assert KEY.encode() not in data_of, where


def test_an_export_to_a_bucket_and_from_it(place: Place, local: Path, tmp_path: Path) -> None:
    """A local run exported to a bucket, a bucket's to a local folder; a smaller one takes the place of a larger one."""
    here, there = open_run(str(local / "runs/test")), open_run(place.root)
    target = f"s3://{place.bucket}/shared/kept"
    export(here, "all", target, rows_a_part=5)
    assert len(place.store.objects(place.bucket, "shared/kept/")) > 5
    export(here, "kept", target)
    export(there, "kept", str(tmp_path / "out"))
    made = {name: data for name, data in place.store.objects(place.bucket, "shared/kept/").items() if name}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made.keys() == {"part-00000.parquet", END}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_missing_scores_are_made_from_a_bucket(place: Place) -> None:
    profile = checked(place.config, *MISSING)
    assert rescore(profile).unscored == 3 * UNITS
    assert score_missing(profile, False, None, None) == []
    folder = decide(profile)
    fresh = checked(place.config, *MISSING, f"output.path=s3://{place.bucket}/fresh")
    run_whole(fresh)
    wanted = place.store.objects(place.bucket, "fresh/test/")
    made = place.made(MISSING)
    for name, data in wanted.items():
        if name.startswith(("ledger/", "shards", "samples/", "manifest.json")) and not name.endswith("/"):
            assert made[name] == data, name
    assert folder.endswith(place.decision(MISSING))
    scores = place.store.objects(place.bucket, "runs/test/scores/")
    assert len([name for name in scores if name]) == UNITS


# ---------------------------------------------------------------- faults


def bad_weather(method: str, path: str, number: int) -> Fault | None:
    """Every eighth request is hurt, one way after the other."""
    faults = [Fault(status=503), Fault(status=500), Fault(wait_s=0.3)]
    faults += [Fault(cut_request=True) if method == "PUT" else Fault(cut_response=True)]
    return faults[number // 8 % 4] if number % 8 == 7 else None


def test_in_bad_weather(place: Place) -> None:
    place.store.proxy.choose = bad_weather
    decide(checked(place.config, *LOOSER))
    hurt = [request.status for request in place.store.proxy.log if request.status in (0, 500, 503)]
    assert {0, 500, 503} <= set(hurt)
    place.store.proxy.clear()
    place.must_be(LOOSER)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["ledger", "decided", "samples", "units"])
def test_units_that_cannot_be_written_fail_and_are_finished_later(place: Place, where: str) -> None:
    """Half of the units: each is told, with what to do; the others are decided, or selected."""
    profile = checked(place.config, *LOOSER)
    shorts = sorted(name.removesuffix(".json") for name in place.store.objects(place.bucket, "runs/test/units/"))
    hurt = shorts[::2]
    if where in ("samples", "units"):
        rescore(profile)

    def choose(method: str, path: str, number: int) -> Fault | None:
        broken = method == "PUT" and f"/{where}/" in path and "/decisions/" in path
        return Fault(status=503) if broken and any(short in path for short in hurt) else None

    place.store.proxy.choose = choose
    failed = rescore(profile).failed if where in ("ledger", "decided") else select(profile).failed
    assert sorted(line[5:17] for line in failed) == hurt
    assert all("the object store asks to slow down: use fewer workers" in line for line in failed)
    assert not any("\n" in line for line in failed)
    place.store.proxy.clear()
    if where in ("ledger", "decided"):
        with pytest.raises(RunError, match="not complete"):
            select(profile)
    else:
        assert json.loads(place.made(LOOSER)["manifest.json"])["complete"] is False
        assert sorted(name[7:19] for name in place.made(LOOSER) if name.startswith("failed/")) == hurt
    assert decide(profile)
    place.must_be(LOOSER)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rescore", "select"])
def test_a_killed_driver_is_followed_by_another(place: Place, tmp_path: Path, command: str) -> None:
    """Its lease, and what it wrote, stand in the bucket: the next one goes on."""
    profile = checked(place.config, *LOOSER)
    if command == "select":
        rescore(profile)
    where = {"rescore": "decided", "select": "units"}[command]
    # Slow enough to be met in the middle.
    place.store.proxy.choose = lambda method, path, number: Fault(wait_s=0.3) if f"/{where}/" in path else None
    with driver(tmp_path / "log", command, *options(place.config, LOOSER), "--workers", "2") as killed:
        killed.wait_until(lambda: any(f"{where}/" in name for name in place.made(LOOSER)), "the first unit")
        killed.send(signal.SIGKILL)
        assert killed.end() == -signal.SIGKILL
        assert killed.left() == []
    place.store.proxy.clear()
    decide(profile)
    place.must_be(LOOSER)


@pytest.mark.parametrize(
    "command", ["rescore", *(pytest.param(name, marks=pytest.mark.slow) for name in ("select", "export"))]
)
def test_a_store_that_is_away_is_one_line(place: Place, tmp_path: Path, command: str) -> None:
    with place.store.proxy.refuse(), driver(tmp_path / "log", command, *options(place.config, LOOSER)) as refused:
        assert refused.end() == 1, refused.said
    (line,) = refused.said.splitlines()
    assert line.startswith(f"error: cannot reach {place.root}: ")
    assert "the object store cannot be reached: check network, region and endpoint" in line


@pytest.mark.slow
def test_a_store_that_breaks_for_good_ends_with_one_line(place: Place, tmp_path: Path) -> None:
    """In mid-work, before the end mark: an error that may pass, and the next call goes on."""
    broken: list[str] = []

    def choose(method: str, path: str, number: int) -> Fault | None:
        if method == "PUT" and path.endswith("/decision.json"):
            broken.append(path)
        return Fault(status=500) if broken else None

    place.store.proxy.choose = choose
    with driver(tmp_path / "log", "rescore", *options(place.config, LOOSER)) as ended:
        assert ended.end() == 1, ended.said
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in ended.said
    assert "the object store has an error of its own: run again later" in errors[0]
    place.store.proxy.clear()
    decide(checked(place.config, *LOOSER))
    place.must_be(LOOSER)
