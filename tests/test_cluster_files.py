"""cluster/: the launcher's file against Ray's own schema, the KubeRay manifest by its structure; both against the code."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from curation.__main__ import _parser
from curation.estimate import parse_cluster
from curation.resources import fit, shortage
from tests.curation.pairs import CHEAP, profile

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)(-gpu)?\Z")


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    package = importlib.util.find_spec("ray")
    assert package
    assert package.origin
    loaded: dict[str, Any] = json.loads((Path(package.origin).parent / "autoscaler/ray-schema.json").read_text())
    return loaded


def wanted(extra: str, package: str) -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(
        found for text in project["optional-dependencies"][extra] if (found := Requirement(text)).name == package
    )


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_the_launchers_file_is_what_ray_takes(launcher: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(launcher, schema)
    with pytest.raises(jsonschema.ValidationError):  # the schema does look
        jsonschema.validate({**launcher, "max_wokers": 3}, schema)
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] in types
    workers = {name: kind for name, kind in types.items() if name != launcher["head_node_type"]}
    assert sum(kind["max_workers"] for kind in workers.values()) == launcher["max_workers"]
    assert all(kind["min_workers"] <= kind["max_workers"] for kind in workers.values())
    for kind in workers.values():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types[launcher["head_node_type"]]["node_config"]
    assert {bool(kind["resources"].get("GPU")) for kind in workers.values()} == {True, False}
    for commands in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in commands)


def test_nodes_install_what_the_project_offers(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    (install,) = launcher["setup_commands"]
    assert "/home/ray/winnow-vl" in launcher["file_mounts"]
    for text in (install, job["spec"]["runtimeEnvYAML"]):
        named = re.search(r"winnow-vl\[([a-z,]+)\]", text)
        assert named
        assert {"curate", "clip"} <= set(named[1].split(",")) <= extras


def test_images_are_rays_and_their_version_is_ours(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    images = [text for part in (launcher, job) for text in strings(part) if text.startswith("rayproject/")]
    assert len(images) == 6
    for image in images:
        parts = IMAGE.fullmatch(image)
        assert parts, image
        assert wanted("curate", "ray").specifier.contains(parts[1])
        assert wanted("cluster", "ray").specifier.contains(parts[1])
        assert parts[1] == job["spec"]["rayClusterSpec"]["rayVersion"]
    assert "gpu" in launcher["available_node_types"]["gpu_worker"]["docker"]["worker_image"]


def test_the_kuberay_manifest(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    command = shlex.split(spec["entrypoint"])
    assert command[:3] == ["python", "-m", "curation"]
    assert _parser().parse_args(command[3:]).command == "run"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["working_dir"].endswith(".zip")
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())
    assert "tolerations" not in cluster["headGroupSpec"]["template"]["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for name, group in groups.items():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        pod = group["template"]["spec"]
        keys = {toleration["key"] for toleration in pod["tolerations"]}
        assert "cloud.google.com/gke-spot" in keys
        assert ("nvidia.com/gpu" in keys) == (name == "gpu")
        (container,) = pod["containers"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests
        assert ("nvidia.com/gpu" in limits) == (name == "gpu") == container["image"].endswith("-gpu")


def test_every_stage_finds_its_node(tmp_path: Path, launcher: dict[str, Any], job: dict[str, Any]) -> None:
    """The settings that the files recommend, on the nodes that they describe."""
    text = (CLUSTER / "ray-cluster.yaml").read_text()
    (setting,) = re.findall(r"resources: (\{clip: .*\})", text)
    assert re.findall(r"resources: (\{clip: .*\})", (CLUSTER / "rayjob.yaml").read_text()) == [setting]
    resources = yaml.safe_load(setting)
    assert resources["clip"]["actors"][1] == launcher["available_node_types"]["gpu_worker"]["resources"]["GPU"]
    checked = profile(tmp_path, filters={**CHEAP, "clip_score": {"min": 0.3}}, resources=resources)
    (cluster,) = re.findall(r'--cluster "(.*?)"', text)
    nodes = parse_cluster(cluster)
    pods = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    ]
    written = [f"cpus={pod['cpu']},gpus={pod.get('nvidia.com/gpu', 0)},memory={pod['memory']}B" for pod in pods]
    for shape in (nodes, parse_cluster(" + ".join(written))):
        assert shortage(checked, shape) is None
        shares = fit(checked, shape)
        assert (shares.full, shares.actor_cpus, shares.actor_gpus) == (8, 10, 1)
        assert shares.read_memory == 1.5 * 2**30


def test_a_cluster_that_grows_from_zero_asks_for_what_it_will_ask(tmp_path: Path) -> None:
    """The recommended settings on the head alone, as at the first wave of a run."""
    (setting,) = re.findall(r"resources: (\{clip: .*\})", (CLUSTER / "ray-cluster.yaml").read_text())
    checked = profile(tmp_path, filters={**CHEAP, "clip_score": {"min": 0.3}}, resources=yaml.safe_load(setting))
    shares = fit(checked, [{"CPU": 0.0, "memory": 20 * 2**30}])
    assert (shares.actors, shares.actor_cpus, shares.actor_gpus) == ((1, 8), 10, 1)


def test_every_kind_of_node_is_offered_a_profile() -> None:
    text = (CLUSTER / "ray-cluster.yaml").read_text()
    offered = yaml.safe_load(re.sub(r"# (IamInstanceProfile: \{.*\})", r"\1", text))
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in offered["available_node_types"].items()
    }
    assert "iam:PassRole" in profiles.pop("head")
    assert set(profiles) == {"cpu_worker", "gpu_worker"}
    assert all("buckets" in text for text in profiles.values())


def test_nothing_secret_is_written(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    environment = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    for text in strings([launcher, job, environment]):
        assert not re.search(r"AKIA[0-9A-Z]{16}|SECRET|PASSWORD|/work/|/tmp/", text)
    assert set(environment) == {"excludes", "env_vars"}
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
