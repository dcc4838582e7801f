"""What stages ask of clusters of every shape, and that a real Ray runs what was asked for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curation.profile import Profile
from curation.resources import MOST_ACTOR_CPUS, fit, shortage
from curation.run import run
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.test_run import clip_settings
from tests.curation.test_unit import files_of

GIB = 2**30
ROOT = Path(__file__).parents[2]
PIXELS = {**CHEAP, "b": {"filter": "tests.curation.plugins:PixelsWhere"}}


def node(cpus: float, gpus: float = 0, memory: float = 256 * GIB) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": memory}


def pixels(folder: Path, **clip: Any) -> Profile:
    return profile(folder, filters=PIXELS, resources={"clip": clip})


def test_one_actor_a_gpu_with_cpus_to_decode_for_it(tmp_path: Path) -> None:
    shares = fit(pixels(tmp_path), [node(64, 8), node(64, 8)])
    assert (shares.actors, shares.start, shares.actor_gpus, shares.actor_cpus) == ((1, 16), 16, 1, 7)
    assert shares.reads == 16
    assert fit(pixels(tmp_path), [node(256, 2)]).actor_cpus == MOST_ACTOR_CPUS
    assert fit(pixels(tmp_path), [node(4, 4), node(64)]).actor_cpus == 0.75
    assert fit(pixels(tmp_path), [node(1, 1), node(64)]).actor_cpus == 0.5
    assert fit(pixels(tmp_path, num_gpus=0.5), [node(64, 8)]).actors == (1, 16)
    assert fit(pixels(tmp_path, num_gpus=0), [node(64, 8)]).actor_gpus == 0


def test_before_the_first_gpu_has_come(tmp_path: Path) -> None:
    """A pool keeps what it begins with for a wave: a cluster that grows from zero must not begin with one CPU a GPU."""
    grows = pixels(tmp_path, num_gpus=1, actors=[1, 8])
    for nodes in ([], [{"CPU": 0.0, "memory": 16 * GIB}], [node(32)]):
        assert (fit(grows, nodes).actor_cpus, fit(grows, nodes).full) == (MOST_ACTOR_CPUS, 1), nodes
        assert "1 actors want 1 GPUs and 10 CPUs each, there are 0 GPUs" in (shortage(grows, nodes) or "")
    assert fit(grows, [node(32)]).reads == 32  # what waits takes nothing
    assert fit(grows, [node(32), node(64, 8)]).actor_cpus == 7
    assert fit(pixels(tmp_path, num_gpus=1, num_cpus=3), []).actor_cpus == 3
    too_small = [node(4, 1)] * 2
    assert "no node of 2 has the 10 CPUs, 2 GPUs" in (shortage(pixels(tmp_path, num_gpus=2), too_small) or "")


def test_a_reader_needs_a_place_beside_the_actors(tmp_path: Path) -> None:
    def lacking(nodes: list[dict[str, float]], read: dict[str, Any], **clip: Any) -> str:
        clip = {"num_gpus": 0, "num_cpus": 2, "actors": [2, 2], **clip}
        return shortage(profile(tmp_path, filters=PIXELS, resources={"read": read, "clip": clip}), nodes) or ""

    line = "nodes have no room for a reader with 2 CPUs"
    assert f"2 {line}" in lacking([node(3)] * 2, {"num_cpus": 2})
    assert "beside 2 actors with 2 CPUs" in lacking([node(3)] * 2, {"num_cpus": 2})
    assert not lacking([node(3)] * 2, {"num_cpus": 1})
    assert not lacking([node(3)] * 3, {"num_cpus": 2})
    assert not lacking([node(3), node(4)], {"num_cpus": 2})
    assert not lacking([node(2), node(4)], {"num_cpus": 2}, actors=[1, 1])
    assert f"2 {line}" in lacking([node(3, 0, 512 * GIB), node(3, 0, 512 * GIB)], {"num_cpus": 2})
    low = {"num_cpus": 1, "memory": 3 * GIB}
    assert "3.0 GiB beside 2 actors" in lacking([node(8, 0, 6 * GIB)] * 2, low, memory=4 * GIB)
    assert not lacking([node(8, 0, 7 * GIB)] * 2, low, memory=4 * GIB)
    assert "beside 1 actors" in lacking(
        [node(4, 1), node(2)], {"num_cpus": 3}, num_gpus=1, actors=[1, 1]
    )  # only one node has the CPUs, and it has the GPU
    assert not lacking([{"CPU": 4.0}], {"num_cpus": 1}, actors=[1, 1])  # a Ray that tells nothing of memory


def test_without_gpus_most_cpus_score(tmp_path: Path) -> None:
    for cpus, actors in ((2, 1), (4, 3), (8, 7), (64, 56)):
        shares = fit(pixels(tmp_path), node(cpus))
        assert (shares.actors, shares.actor_cpus, shares.reads) == ((1, actors), 1, cpus - actors), cpus
    assert fit(pixels(tmp_path), node(1)).actor_cpus == 0.5


def test_little_memory_makes_fewer_actors_of_more_cpus(tmp_path: Path) -> None:
    shares = fit(pixels(tmp_path), node(32, memory=24 * GIB))
    assert shares.actor_memory == 4 * GIB
    assert shares.actor_cpus > 1
    used = shares.full * shares.actor_memory + shares.reads * (shares.read_memory or 0)
    assert used <= 24 * GIB
    assert shares.full * shares.actor_cpus + shares.reads <= 32
    tiny = fit(pixels(tmp_path), node(2, memory=2 * GIB))
    assert (tiny.read_memory, tiny.actor_memory) == (GIB / 2, GIB)
    assert shortage(pixels(tmp_path), node(2, memory=2 * GIB)) is None


def test_memory_follows_the_units(tmp_path: Path) -> None:
    small, large = (fit(pixels(tmp_path), node(64), unit_bytes=size) for size in (10 * 2**20, 512 * 2**20))
    assert (small.read_memory, large.read_memory) == (532 * 2**20, 1.5 * GIB)
    assert fit(pixels(tmp_path), node(64), unit_bytes=2**40) == large  # a large file is cut
    assert fit(pixels(tmp_path), {"CPU": 64.0}).read_memory is None  # a Ray that tells nothing of memory


def test_settings_win(tmp_path: Path) -> None:
    settings = {"read": {"num_cpus": 2, "memory": GIB}, "clip": {"num_cpus": 3, "actors": [2, 4], "memory": 5 * GIB}}
    shares = fit(profile(tmp_path, filters=PIXELS, resources=settings), node(64, 2))
    assert (shares.read_cpus, shares.read_memory) == (2, GIB)
    assert fit(pixels(tmp_path, num_cpus=16), node(64, 8)).actors == (1, 3)  # and readers keep their eighth
    assert (shares.actor_cpus, shares.actor_memory, shares.actors, shares.start, shares.full) == (3, 5 * GIB, (2, 4), 2, 2)  # fmt: skip


def test_defaults_fit_every_node(tmp_path: Path) -> None:
    checked = pixels(tmp_path)
    shapes = itertools.product((1, 2, 3, 4, 7, 8, 16, 64, 96, 256), (0, 1, 4, 8), (1, 8, 64, 1024), (1, 3))
    for cpus, gpus, memory, count in shapes:
        nodes = [node(cpus, gpus, memory * GIB)] * count
        shares = fit(checked, nodes)
        what = (cpus, gpus, memory, count, shares)
        assert shortage(checked, nodes) is None, what
        assert shares.full * shares.actor_cpus + shares.read_cpus <= cpus * count, what
        assert shares.full * (shares.actor_memory or 0) + (shares.read_memory or 0) <= memory * GIB * count, what
        assert shares.full * shares.actor_gpus == gpus * count, what  # every GPU has an actor
        assert shares.reads >= 1, what


def test_what_no_node_has_is_told(tmp_path: Path) -> None:
    two = [node(4, 1, 8 * GIB)] * 2
    assert "no node of 2 has the 0.5 CPUs, 2 GPUs" in (shortage(pixels(tmp_path, num_gpus=2, num_cpus=0.5), two) or "")
    assert "no node of 2 has the 6 CPUs" in (shortage(pixels(tmp_path, num_gpus=0, num_cpus=6), two) or "")
    greedy = profile(tmp_path, resources={"read": {"memory": 12 * GIB}})
    assert "one reader wants: lower resources.read" in (shortage(greedy, two) or "")
    greedy = profile(tmp_path, resources={"read": {"memory": 20 * GIB}})
    assert "a reader wants 20.0 GiB of memory, Ray has 16.0 GiB" in (shortage(greedy, two) or "")
    assert "lower resources.read.memory or .clip.memory" in (shortage(pixels(tmp_path, memory=16 * GIB), two) or "")
    assert shortage(profile(tmp_path), two) is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_bytes_do_not_depend_on_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP on one thread of a Ray of two CPUs, and on two actors of two threads on a Ray of six."""
    monkeypatch.setenv("PYTEST_TINY_CLIP", str(tmp_path))
    filters = {**CHEAP, "clip_score": clip_settings()}
    for name in ("two", "six"):
        for number in range(6):
            samples = [*flat(good_pairs(3, number * 5)), *pair("x", "no", image())]
            write_tar(tmp_path / name / f"in/{number}.tar", samples)
    assert run(profile(tmp_path / "two", filters=filters)).totals.kept == 18
    config = write_config(tmp_path / "six", filters=filters, resources={"clip": {"num_cpus": 2}})
    code = (
        "import ray, sys; ray.init(address='local', num_cpus=6, include_dashboard=False, log_to_driver=False,"
        " object_store_memory=300_000_000);"
        "from curation.config import load; from curation.run import run; from curation.cluster import nodes as _nodes;"
        "from curation.resources import fit; profile = load(sys.argv[1]).profile('test');"
        "result = run(profile); print(fit(profile, _nodes()).actors, result.totals.kept, result.failed)"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code, config], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.stdout.strip() == "(1, 2) 18 []", done.stderr
    assert files_of(tmp_path / "two") == files_of(tmp_path / "six")


SLOW = """
import time
from tests.curation.plugins import PixelsWhere

class Slow(PixelsWhere):
    def meet(self, boom):
        time.sleep(1)
"""
PEAK = """
import sys, threading, ray
ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2_000_000_000)
from curation.config import load
from curation.run import run
ended, peak = threading.Event(), [0.0]
def watch():
    total = ray.cluster_resources()['object_store_memory']
    while not ended.wait(0.2):
        peak[0] = max(peak[0], total - ray.available_resources().get('object_store_memory', 0.0))
watching = threading.Thread(target=watch)
watching.start()
result = run(load(sys.argv[1]).profile('test'))
ended.set()
watching.join()
print(len(result.failed), result.worked, round(peak[0] / 1e6))
"""


@pytest.mark.slow
def test_units_do_not_pile_up_before_slow_actors(tmp_path: Path) -> None:
    """24 units of 30 MB, an actor that takes a second for each, readers that take a tenth: 720 MB would fit the store."""
    first = write_tar(tmp_path / "in/00.tar", flat(good_pairs(30)) + pair("z", "A heavy picture of a thing", heavy()))
    for number in range(1, 24):
        os.link(first, tmp_path / f"in/{number:02d}.tar")
    (tmp_path / "slow_filters.py").write_text(SLOW)
    config = write_config(tmp_path, filters={**CHEAP, "b": {"filter": "slow_filters:Slow"}})
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, config], env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    failed, worked, peak = map(int, done.stdout.split())
    assert (failed, worked) == (0, 24), done.stderr
    assert 30 < peak < 300  # megabytes: the limit is 4 units of at least 64 MiB


def heavy() -> bytes:
    """30 MB: a JPEG with a comment as long as that."""
    picture = image()
    comment = b"".join(b"\xff\xfe\xff\xff" + os.urandom(65533) for _ in range(458))
    return picture[:2] + comment + picture[2:]
