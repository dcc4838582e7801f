"""A cluster of several nodes whose nodes leave and join in mid-run: real raylets, in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.curation.pairs import CHEAP, profile, write_config
from tests.curation.processes import arrivals, await_arrivals, driver
from tests.curation.test_kills import PLUGIN, same_as_undisturbed, some_input

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

# Deaths of nodes are noticed within a second or two.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


def gated(gate: Path) -> dict[str, Any]:
    """Every unit waits at the gate while it is read; the survivors of each pass an actor. Small shares: many read."""
    filters = {
        **CHEAP,
        "gate": {"filter": PLUGIN("Gate"), "folder": str(gate), "always": True},
        "pixels": {"filter": PLUGIN("PixelsSlow"), "seconds": 0.0},
    }
    return {"filters": filters, "resources": {"read": {"num_cpus": 0.5}}}


def test_nodes_leave_and_join_in_mid_run(tmp_path: Path) -> None:
    """One cluster, two runs: in the first a node goes while it reads a unit, in the second one comes and gets work."""
    for name in ("leave", "join"):
        (tmp_path / name / "gate").mkdir(parents=True)
        samples = some_input(tmp_path / name, 6)
        write_config(tmp_path / name, **gated(tmp_path / name / "gate"))
    with driver(tmp_path / "nodes.log", tmp_path, code=("-m", "tests.curation.test_nodes")) as cluster:
        assert cluster.end() == 0, cluster.said
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {name: {"worked": 6, "failed": []} for name in ("leave", "join")}
    left, joined = ({arrival["node"] for arrival in arrivals(tmp_path / name / "gate")} for name in ("leave", "join"))
    assert len(left) == 2
    assert len(joined) == 2
    assert len(left & joined) == 1
    for name in ("leave", "join"):
        same_as_undisturbed(tmp_path / name, samples, **gated(tmp_path / name / "gate"))


def main(folder: Path) -> None:
    """The driver of both runs, on a head and a second node."""
    # A place of its own: a Cluster writes into the usual one which cluster of this machine is the current one.
    os.environ["RAY_TMPDIR"] = place = tempfile.mkdtemp(prefix="ray-")
    import ray
    from ray.cluster_utils import Cluster

    from curation.run import run

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": QUICK},
    )
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)

    def leave(gate: Path) -> None:
        _two_nodes(gate)
        cluster.remove_node(second, allow_graceful=False)

    def join(gate: Path) -> None:
        await_arrivals(gate, 1)
        cluster.add_node(num_cpus=2)
        _two_nodes(gate)

    told = {}
    pool = ThreadPoolExecutor(1)
    for name, change in (("leave", leave), ("join", join)):
        gate = folder / name / "gate"
        # Nodes can be started in the main thread only.
        running = pool.submit(run, profile(folder / name, **gated(gate)), address=cluster.address)
        change(gate)
        (gate / "open").touch()
        result = running.result()
        told[name] = {"worked": result.worked, "failed": [outcome.error for outcome in result.failed]}
    (folder / "told.json").write_text(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def _two_nodes(gate: Path) -> None:
    """Waits until units are being read on two nodes."""
    count = 1
    while len({arrival["node"] for arrival in await_arrivals(gate, count)}) < 2:
        count += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
