"""Ray's head: an address that is not Ray's, what Ray prints in a driver, and a head that dies in mid-run."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import psutil
import pytest

from curation import head
from curation.cluster import JobError, must_fit
from curation.run import run
from tests.curation.pairs import CHEAP, profile, write_config
from tests.curation.processes import Driver, await_arrivals, driver
from tests.curation.test_cli import call, one_line
from tests.curation.test_kills import PLUGIN, same_as_undisturbed, some_input

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def web() -> Iterator[int]:
    """A plain HTTP server's port."""
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory="/nonexistent")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_an_address_that_is_not_rays_is_told_at_once(web: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    told = head.not_ray(f"127.0.0.1:{web}")
    assert told == f"no Ray at '127.0.0.1:{web}': something else answers there; Ray's own port is usually 6379"
    assert "usually 10001" in (head.not_ray(f"ray://127.0.0.1:{web}") or "")
    assert "Ray itself is at HOST:PORT" in (head.not_ray(f"http://127.0.0.1:{web}") or "")
    assert head.not_ray(ray.get_runtime_context().gcs_address) is None
    for asked_by_ray in ("local", "auto", "anyhost"):
        assert head.not_ray(asked_by_ray) is None
    assert "no Ray at '127.0.0.1:123456'" in (head.not_ray("127.0.0.1:123456") or "")
    monkeypatch.setattr(head, "ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert "Connection refused" in (head.not_ray(address) or "")
        silent.listen()
        assert "something else answers there" in (head.not_ray(address) or "")


def test_a_run_at_a_wrong_port_ends_with_one_line(web: int, tmp_path: Path) -> None:
    some_input(tmp_path, 1)
    started = time.monotonic()
    line = one_line(call("run", "--config", write_config(tmp_path), "--address", f"127.0.0.1:{web}"))
    assert line == f"error: no Ray at '127.0.0.1:{web}': something else answers there; Ray's own port is usually 6379"
    assert time.monotonic() - started < 30
    assert not (tmp_path / "runs/test/lease.json").exists()


def test_only_a_cluster_may_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = profile(tmp_path, resources={"read": {"num_cpus": 64}})
    nodes = [{"CPU": 2.0, "memory": 8e9, "object_store_memory": 2e9}]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in (None, "local"):
        with pytest.raises(JobError, match="64"):
            must_fit(checked, nodes, address)
    assert "waiting for the cluster to grow" in (must_fit(checked, nodes, "far:6379") or "")
    monkeypatch.setenv("RAY_ADDRESS", "far:6379")
    assert "waiting for the cluster to grow" in (must_fit(checked, nodes, None) or "")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(JobError, match="64"):
        must_fit(checked, nodes, None)


def test_what_ray_prints_goes_to_the_core_log(capfd: pytest.CaptureFixture[str]) -> None:
    from ray._private import utils, worker

    printed = worker.print_to_stdstream
    with head.messages_in_log():
        said = ""
        deadline = time.monotonic() + 30
        while "a worker went away" not in said:
            assert time.monotonic() < deadline
            utils.publish_error_to_driver("test", "a worker went away", gcs_client=worker.global_worker.gcs_client)
            time.sleep(0.2)
            out, errors = capfd.readouterr()
            assert "went away" not in out
            said += errors
    assert worker.print_to_stdstream is printed


@pytest.mark.slow
def test_a_worker_that_dies_is_no_news_for_the_terminal(tmp_path: Path) -> None:
    samples = some_input(tmp_path, boom=True)
    gate = tmp_path / "gate"
    gate.mkdir()
    filters = {**CHEAP, "once": {"filter": PLUGIN("DiesOnce"), "folder": str(gate)}}
    with driver(tmp_path / "log", "run", "--config", write_config(tmp_path, filters=filters)) as dying:
        assert dying.end() == 0, dying.said
        assert (gate / "died").exists()
        before, heading, _ = dying.said.partition("\ntest\n")
        assert heading
        assert all(line.startswith("test: ") for line in before.splitlines()), dying.said
        assert not re.search(r"raylet|\x1b", dying.said), dying.said
    same_as_undisturbed(tmp_path, samples, filters=filters)


def killed(victim: Driver, root: int) -> None:
    """kill -9 of the head's server among the children of `root`; the driver ends in order soon after."""
    (server,) = (child for child in psutil.Process(root).children(recursive=True) if child.name() == "gcs_server")
    victim.remember()
    server.kill()
    started = time.monotonic()
    assert victim.end() == 1, victim.said
    print(f"{time.monotonic() - started:.1f} s from the head's death to the end")
    (line,) = (line for line in victim.said.splitlines() if line.startswith("error: "))
    told = re.fullmatch(
        r"error: Ray's head at \S+:\d+ is gone; what is committed stays: the same command goes on from there "
        r"\(Ray's own log: (\S+)\)",
        line,
    )
    assert told, victim.said
    Path(told[1]).unlink()
    assert "Traceback" not in victim.said
    assert line == victim.said.splitlines()[-1]


@pytest.mark.slow
def test_a_local_head_that_dies_ends_the_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(head.CORE_VARIABLE, "15")
    gate = tmp_path / "gate"
    gate.mkdir()
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate)}}
    with driver(tmp_path / "log", "run", "--config", write_config(tmp_path, filters=filters)) as victim:
        await_arrivals(gate, 1, victim)
        assert (tmp_path / "runs/test/lease.json").exists()
        killed(victim, victim.pid)
        assert not (tmp_path / "runs/test/lease.json").exists()
    (gate / "open").touch()
    assert not run(profile(tmp_path, filters=filters)).failed
    same_as_undisturbed(tmp_path, samples, filters=filters)


@pytest.mark.slow
def test_a_clusters_head_that_dies_ends_the_run_before_ray_does(tmp_path: Path) -> None:
    """With Ray's own minute."""
    gate = tmp_path / "gate"
    gate.mkdir()
    samples = some_input(tmp_path, boom=True)
    filters = {**CHEAP, "gate": {"filter": PLUGIN("Gate"), "folder": str(gate)}}
    config = write_config(tmp_path, filters=filters)
    told = tmp_path / "address"
    with driver(tmp_path / "cluster.log", told, code=("-m", "tests.curation.test_head")) as cluster:
        cluster.wait_until(told.exists, "the cluster")
        cluster.remember()
        with driver(tmp_path / "log", "run", "--config", config, "--address", told.read_text()) as victim:
            await_arrivals(gate, 1, victim)
            killed(victim, cluster.pid)
            assert not (tmp_path / "runs/test/lease.json").exists()
    (gate / "open").touch()
    assert not run(profile(tmp_path, filters=filters)).failed
    same_as_undisturbed(tmp_path, samples, filters=filters)


def test_a_head_that_is_only_busy_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that takes connections and never answers; one that is shut for less than the limit, and comes back."""
    monkeypatch.setattr(head, "KNOCK_S", 0.05)
    monkeypatch.setenv(head.CORE_VARIABLE, "3")
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        lost: list[str] = []
        monkeypatch.setattr(head, "_end", lambda address, log, at_loss: lost.append(address))
        with head.watched(address, "log", lambda: None):
            time.sleep(0.5)
            busy.listen(100)
            time.sleep(3 * head.patience_s() / 2)
            assert not lost
        assert not any(thread.name == "ray head" for thread in threading.enumerate())


def main(told: Path) -> None:
    """A cluster of one node; its address is written to `told`, and then it waits to be killed."""
    # A place of its own: a Cluster writes into the usual one which cluster of this machine is the current one.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    told.with_suffix(".new").write_text(cluster.address)
    told.with_suffix(".new").rename(told)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
