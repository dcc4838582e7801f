"""Estimates: arithmetic that can be checked by hand, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.estimate import RATES, estimate_lines, measured, parse_cluster, parse_rate, resource_lines, this_machine
from curation.plan import make_plan, plan_lines
from curation.profile import Profile
from curation.run import run
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.test_cli import call

GIB = 2**30


def with_clip(folder: Path, **settings: Any) -> Profile:
    return profile(folder, filters={**CHEAP, "clip_score": {"min": 0.3}}, **settings)


def test_clusters_are_written_as_nodes() -> None:
    (one,) = parse_cluster("cpus=64,gpus=8,memory=100GiB")
    assert one == {"CPU": 64, "GPU": 8, "memory": 60 * GIB, "object_store_memory": 30 * GIB}
    mixed = parse_cluster(" 2x cpus=96, gpus=8 + 10x cpus=32 ")
    assert [(node["CPU"], node.get("GPU")) for node in mixed] == [(96, 8)] * 2 + [(32, None)] * 10
    assert parse_cluster("cpus=4,memory=1.5TB")[0]["memory"] == pytest.approx(0.9e12)
    (mine,) = this_machine()
    assert mine["CPU"] >= 1
    assert mine["memory"] > GIB / 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "64",
        "cpus",
        "cpus=-1",
        "cpus=0",
        "gpus=8",
        "cpus=4,memory=8",
        "0x cpus=4",
        "cpu=4",
        "cpus=4,,",
        "cpus=٣",
    ],
)
def test_other_clusters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cpus|node"):
        parse_cluster(text)


@pytest.mark.parametrize(
    "text", ["", "read", "read=", "read=0", "read=-1", "read=nan", "read=inf", "survivors=1.5", "speed=3"]
)
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be read=N"):
        parse_rate(text)


def test_five_billion_pairs_on_eight_gpus(tmp_path: Path) -> None:
    nodes = parse_cluster("cpus=64,gpus=8,memory=512GiB")
    given = {"read": 1000.0, "clip": 312.0, "survivors": 0.5, "decode": 250.0}
    lines = "\n".join(estimate_lines(with_clip(tmp_path), nodes, 5e9, given))
    assert "reading: 1,000/s (given) x 8 CPUs = 8,000 pairs/s" in lines
    assert "CLIP: 8 actors, 312/s (given) a GPU x 1: 4,992 pairs/s" in lines  # 8 x 312 / 0.5
    assert "bottleneck: CLIP (the readers are busy 62% of the time)" in lines
    assert "4,992 pairs/s: 278.2 hours (11.6 days), 17,806 CPU-hours, 2,226 GPU-hours" in lines  # 5e9 / 4992 / 3600
    slow_readers = "\n".join(estimate_lines(with_clip(tmp_path), nodes, 5e9, {**given, "read": 100.0}))
    assert "bottleneck: reading (the actors are busy 16% of the time)" in slow_readers
    fast_gpu = "\n".join(estimate_lines(with_clip(tmp_path), nodes, 5e9, {**given, "clip": 2500.0, "read": 1e6}))
    assert "7 CPUs decoding 250/s (given), below a GPU's 2,500/s: 28,000 pairs/s" in fast_gpu  # 8 x 7 x 250 / 0.5
    assert "bottleneck: decoding for CLIP: raise resources.clip.num_cpus" in fast_gpu


def test_an_unknown_rate_gives_no_hours(tmp_path: Path) -> None:
    lines = estimate_lines(with_clip(tmp_path), parse_cluster("cpus=64,gpus=8"), 5e9, {})
    assert lines[-1] == "CLIP: no rate of this model on a GPU is known: give --rate clip=N (docs/operations.md)"
    assert not any("hours" in line for line in lines)
    large = profile(
        tmp_path,
        filters={**CHEAP, "c": {"filter": "clip_score", "model": "ViT-H-14", "pretrained": "x.pt", "min": 0.3}},
    )
    assert "on a CPU is known" in estimate_lines(large, parse_cluster("cpus=64"), 5e9, {})[-1]


def test_measured_rates_say_so(tmp_path: Path) -> None:
    rates = yaml.safe_load(RATES.read_text())
    assert rates["read"] > rates["decode"] > rates["clip_cpu"]["ViT-B-32"] > 0
    assert "CPUs" in rates["origin"]
    lines = "\n".join(estimate_lines(with_clip(tmp_path), parse_cluster("cpus=8"), 1e6, {}))
    one = measured()["clip_cpu"]["ViT-B-32"]
    assert "measured, curation/rates.yaml" in lines
    assert "reach CLIP: 63.5% (assumed, docs/real-data.md)" in lines
    assert f"{7 * one / 0.635:,.0f} pairs/s: {1e6 / (7 * one / 0.635) / 3600:,.1f} hours" in lines
    assert "an upper bound" in lines


def test_without_clip_readers_are_all(tmp_path: Path) -> None:
    checked, nodes = profile(tmp_path), parse_cluster("cpus=10")
    assert resource_lines(checked, nodes) == ["on 1 node of 10 CPUs", "readers: up to 10 at once, 1 CPU each"]
    lines = estimate_lines(checked, nodes, 36e6, {"read": 1000.0})
    assert "10,000 pairs/s: 1.0 hours, 10 CPU-hours of the whole cluster" in lines


def test_a_shortage_is_in_the_plan(tmp_path: Path) -> None:
    checked = with_clip(tmp_path, resources={"clip": {"num_gpus": 2}})
    assert "too little: 1 actors want 2 GPUs" in "\n".join(resource_lines(checked, parse_cluster("cpus=8,gpus=1")))


@pytest.mark.usefixtures("ray_local")
def test_the_share_that_reaches_clip_is_the_runs(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", [*flat(good_pairs(3)), *pair("x", "no", image())])
    checked = profile(tmp_path, filters={**CHEAP, "b": {"filter": "tests.curation.plugins:PixelsWhere"}})
    nodes = parse_cluster("cpus=8,gpus=1")
    before = "\n".join(plan_lines(make_plan(checked), nodes, 1e6, {"clip": 100}))
    assert "assumed" in before
    run(checked)
    assert "reach CLIP: 75.0% (of 4 pairs committed here)" in "\n".join(
        plan_lines(make_plan(checked), nodes, 1e6, {"clip": 100})
    )


def test_plan_from_the_shell(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    config = write_config(tmp_path)
    here = call("plan", "--config", config)
    assert "resources  on 1 node of " in here.stdout
    assert "estimate" not in here.stdout
    done = call(
        "plan",
        "--config",
        config,
        "--cluster",
        "4x cpus=16",
        "--pairs",
        "5e9",
        "--rate",
        "read=1000",
        "--rate",
        "clip=3",
    )
    assert "estimate   5,000,000,000 pairs" in done.stdout
    assert "64,000 pairs/s: 21.7 hours" in done.stdout
    for wrong in (("--cluster", "gpus=3"), ("--rate", "x=1"), ("--pairs", "0"), ("--pairs", "many")):
        refused = call("plan", "--config", config, *wrong)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith(f"python -m curation plan: error: argument {wrong[0]}: ")
