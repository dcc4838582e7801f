"""The lease of a run's folder: who is refused, who takes over, and that nothing but time depends on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from curation import lease
from curation.cluster import JobError
from curation.plan import RunError
from curation.run import run
from shards.object_store import PATIENCE_VARIABLE
from shards.storage import Storage
from tests.curation.pairs import CHEAP, profile, write_config
from tests.curation.processes import arrivals, await_arrivals, driver
from tests.curation.test_cli import call, one_line
from tests.curation.test_kills import PLUGIN, same_as_undisturbed, some_input
from tests.s3 import Fault, Store, serving_here

pytestmark = pytest.mark.usefixtures("ray_local")


def waits_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def written(output: Storage, owner: lease.Owner) -> lease.Owner:
    output.write(lease.NAME, json.dumps(asdict(owner)).encode())
    return owner


def taken_over(output: Storage, seen: Callable[[], object]) -> lease.Owner:
    """Another takes over and renews, as a run does: a renewal under way may write over it once."""
    other = replace(lease.Owner.me(), host="other")
    waits_for(lambda: written(output, other) and seen())
    return other


def renewing() -> bool:
    return any(thread.name == "lease" for thread in threading.enumerate())


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times faster and more."""
    for name, seconds in (("RENEW_S", 0.2), ("STALE_S", 3.0), ("LOOK_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


def test_a_lease_is_held_renewed_and_given_back(output: Storage, quick: None) -> None:
    said: list[str] = []
    with lease.hold(output, said.append) as held:
        first = lease.read(output)
        assert first is not None
        assert (first.pid, first.machine, first.lives()) == (os.getpid(), lease.this_machine(), True)
        with pytest.raises(RunError, match=rf"at work here \(process {os.getpid()} of .* on .*, since 20") as caught:
            lease.hold(output, said.append).__enter__()
        assert len(str(caught.value).splitlines()) == 1
        waits_for(lambda: (now := lease.read(output)) is not None and now.renewals > first.renewals + 2)
        assert held.lost is None
    assert lease.read(output) is None
    assert said == []


def test_a_lease_goes_with_an_error_too(output: Storage) -> None:
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), lease.hold(output, print):
            raise error
        assert not output.exists(lease.NAME)


def test_a_dead_owner_on_this_machine_is_followed_at_once(output: Storage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    _, started = lease._process(child.pid)
    owner = written(output, replace(lease.Owner.me(), pid=child.pid, process_started=started))
    assert owner.lives()
    with pytest.raises(RunError, match=f"process {child.pid}"):
        lease.hold(output, print).__enter__()
    assert not replace(owner, process_started="1").lives(), "another process got the pid"
    child.kill()
    waits_for(lambda: not owner.lives())  # dead, though its parent has not asked for its status yet
    assert lease._process(child.pid)[0] == "Z"
    said: list[str] = []
    with lease.hold(output, said.append):
        pass
    assert len(said) == 1
    assert f"takes over from process {child.pid} of " in said[0]
    assert said[0].endswith("which is dead")
    child.communicate()
    assert not owner.lives()


def test_an_owner_that_lives_but_is_silent_is_followed(output: Storage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = replace(lease.Owner.me(), pid=child.pid, process_started=lease._process(child.pid)[1])
        written(output, replace(owner, uptime=time.monotonic() - lease.STALE_S - 5))
        said: list[str] = []
        with lease.hold(output, said.append):
            assert "silent for 65 s" in said[0]
    finally:
        child.kill()
        child.communicate()


def test_an_owner_on_another_machine_is_watched_whatever_its_clock_says(output: Storage, quick: None) -> None:
    elsewhere = replace(lease.Owner.me(), machine="elsewhere", host="far", pid=1, uptime=1e12, since="2031-01-01")
    # One that renews is refused as soon as that is seen.
    written(output, elsewhere)
    said: list[str] = []
    timer = threading.Timer(0.3, lambda: written(output, replace(elsewhere, renewals=1)))
    timer.start()
    started = time.monotonic()
    with pytest.raises(RunError, match="process 1 of .* on far, since 2031-01-01"):
        lease.hold(output, said.append).__enter__()
    assert time.monotonic() - started < lease.STALE_S
    timer.join()
    assert "watching for up to" in said.pop()
    # One that does not is followed after the time in which it should have.
    started = time.monotonic()
    with lease.hold(output, said.append):
        assert time.monotonic() - started >= lease.STALE_S
    assert "takes over" in said[1]
    # One that gives its lease back meanwhile.
    written(output, elsewhere)
    timer = threading.Timer(0.1, lambda: output.delete(lease.NAME))
    timer.start()
    with lease.hold(output, said.append):
        pass
    timer.join()


def test_a_lease_that_is_lost_is_left_to_its_new_owner(output: Storage, quick: None) -> None:
    with lease.hold(output, print) as held:
        other = taken_over(output, lambda: held.lost)
        assert "another run took over here (process" in (held.lost or "")
    assert lease.read(output) == other


@pytest.mark.parametrize("renewed", [False, True])
def test_of_two_that_write_at_once_exactly_one_goes_on(
    output: Storage, quick: None, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    """The first has read its own lease and writes it after the second took over (and has renewed)."""
    writes, may_write = threading.Event(), threading.Event()
    write = lease.Lease._write

    def held_up(self: lease.Lease, to: Storage) -> None:
        if self is first:
            writes.set()
            assert may_write.wait(20)
        write(self, to)

    first = lease.Lease(output, print)
    monkeypatch.setattr(lease.Lease, "_write", held_up)
    assert writes.wait(20)
    second = lease.Lease(output, print)
    waits_for(lambda: second._me.renewals >= renewed)
    may_write.set()
    waits_for(lambda: first.lost or second.lost)
    ends, stays = (first, second) if first.lost else (second, first)
    renewals = stays._me.renewals
    waits_for(lambda: stays._me.renewals > renewals + 2)
    assert stays.lost is None
    ends.release()
    assert (found := lease.read(output)) is not None
    assert found.uuid == stays._me.uuid
    stays.release()
    assert not output.exists(lease.NAME)


def test_a_damaged_lease_is_none_and_a_deleted_one_is_written_again(output: Storage, quick: None) -> None:
    for damage in (b"{", b"[]", b'{"pid": 1}', b"\xff"):
        output.write(lease.NAME, damage)
        with lease.hold(output, print):
            output.delete(lease.NAME)
            waits_for(lambda: lease.read(output))
        assert not output.exists(lease.NAME)


def test_a_lease_that_cannot_be_renewed_is_told_once(tmp_path: Path, output: Storage, quick: None) -> None:
    said: list[str] = []
    with lease.hold(output, said.append):
        while not (tmp_path / lease.NAME).is_dir():  # nothing can be written there, nor read
            (tmp_path / lease.NAME).unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # renewed between the two
                (tmp_path / lease.NAME).mkdir()
        waits_for(lambda: said)
        time.sleep(5 * lease.RENEW_S)
        (tmp_path / lease.NAME).rmdir()
        waits_for(lambda: lease.read(output))
    assert len(said) == 1
    assert "the lease cannot be renewed" in said[0]
    assert not output.exists(lease.NAME)


@pytest.fixture(scope="module")
def _store() -> Iterator[Store]:
    with serving_here() as store:
        yield store


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    yield _store
    _store.proxy.clear()


def on_the_lease(fault: Fault) -> Callable[[str, str, int], Fault | None]:
    return lambda method, path, number: fault if path.endswith(lease.NAME) else None


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(wait_s=30)], ids=["busy", "silent"])
def test_a_store_that_went_away_does_not_hold_up_the_end(
    store: Store, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    output = Storage.open(f"s3://{store.bucket()}/run")
    asked = threading.Event()

    def choose(method: str, path: str, number: int) -> Fault | None:
        asked.set()
        return fault

    with lease.hold(output, print):
        store.proxy.choose = choose
        assert asked.wait(20)
        time.sleep(0.5)  # it has its answer, or waits for it
        began = time.monotonic()
    took = time.monotonic() - began
    assert took < lease.GIVE_BACK_S + 2
    store.proxy.choose = None
    waits_for(lambda: not renewing())
    print(f"{took:.1f} s to give back")


def test_a_store_that_is_busy_for_a_moment_gets_its_lease_back(store: Store) -> None:
    bucket = store.bucket()
    with lease.hold(Storage.open(f"s3://{bucket}/run"), print):
        assert list(store.objects(bucket)) == ["run/lease.json"]
        store.proxy.clear()
        store.proxy.choose = lambda method, path, number: Fault(status=503) if number < 4 else None
    assert "run/lease.json" not in store.objects(bucket)


@pytest.mark.slow
def test_a_lease_does_not_use_up_the_patience_of_the_run(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "15")
    monkeypatch.setattr(lease, "STALE_S", 0.4)
    output = Storage.open(f"s3://{store.bucket()}/run")
    output.write("other", b"what was written")
    said: list[str] = []
    with lease.hold(output, said.append):
        store.proxy.choose = on_the_lease(Fault(status=503))
        waits_for(lambda: said)
        refused = iter(range(4))  # more than the AWS library's own attempts

        def choose(method: str, path: str, number: int) -> Fault | None:
            away = path.endswith(lease.NAME) or (path.endswith("other") and next(refused, None) is not None)
            return Fault(status=503) if away else None

        store.proxy.choose = choose
        assert output.read("other") == b"what was written"


def test_release_all_gives_back_whatever_is_held(tmp_path: Path) -> None:
    folders = [Storage.open(str(tmp_path / name)) for name in "ab"]
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(lease.hold(folder, print))
        lease.release_all()
        assert not any(folder.exists(lease.NAME) for folder in folders)
        assert not lease.Lease.held


def test_a_second_run_is_refused_and_sigterm_ends_the_first_in_order(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate)}}
    config = write_config(tmp_path, filters=filters)
    with driver(tmp_path / "first.log", "run", "--config", config) as first:
        await_arrivals(gate, 1, first)
        refused = one_line(call("run", "--config", config))
        assert f"another run is at work here (process {first.pid} of " in refused
        first.send(signal.SIGTERM)
        sent = time.monotonic()
        assert first.end() == 143, first.said
        took = time.monotonic() - sent
        errors = [line for line in first.said.splitlines() if line.startswith("error: ")]
        assert errors == ["error: terminated; what is committed stays: the same command goes on from there"]
        assert "Traceback" not in first.said
        assert not (tmp_path / "runs/test/lease.json").exists()
        assert took < 20
        print(f"{took:.1f} s from SIGTERM to the end")
    (gate / "open").touch()
    assert not run(profile(tmp_path, filters=filters)).failed
    same_as_undisturbed(tmp_path, samples, filters=filters)


def test_a_run_that_lost_its_lease_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    gate = tmp_path / "gate"
    gate.mkdir()
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate), "always": True}}
    checked = profile(tmp_path, filters=filters)
    output = Storage.open(str(tmp_path / "runs/test"))

    def take_over() -> None:
        try:
            await_arrivals(gate, 1)
            taken_over(output, lambda: not renewing())
        finally:
            (gate / "open").touch()

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(JobError, match="another run took over here .*: this one ends, nothing is lost by it"):
        run(checked)
    thread.join()
    assert output.exists(lease.NAME)
    output.delete(lease.NAME)
    run(checked)
    same_as_undisturbed(tmp_path, samples, filters=filters)


@pytest.mark.slow
def test_two_drivers_without_a_lease_end_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correctness does not depend on it: two drivers, each with its own Ray, do the same units at the same time."""
    gate = tmp_path / "gate"
    gate.mkdir()
    samples = some_input(tmp_path, 8)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate), "always": True}}
    config = write_config(tmp_path, filters=filters)
    code = (
        "import contextlib, sys, types, curation.lease as lease; from curation.__main__ import main\n"
        "lease.hold = lambda output, say: contextlib.nullcontext(types.SimpleNamespace(lost=None))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    monkeypatch.setattr(lease, "hold", lambda output, say: contextlib.nullcontext(types.SimpleNamespace(lost=None)))
    with driver(tmp_path / "other.log", "run", "--config", config, code=("-c", code)) as other:
        await_arrivals(gate, 1, other)

        def open_for_both() -> None:
            while len({arrival["node"] for arrival in arrivals(gate)}) < 2:
                time.sleep(0.01)
            (gate / "open").touch()

        thread = threading.Thread(target=open_for_both, daemon=True)
        thread.start()
        result = run(profile(tmp_path, filters=filters))
        assert (result.worked, result.failed) == (8, [])
        assert other.end() == 0, other.said
        assert "8/8 units" in other.said
    same_as_undisturbed(tmp_path, samples, filters=filters)
