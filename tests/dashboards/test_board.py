"""The Grafana dashboard, and what Docker and Grafana are told, as far as that can be checked without them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from curation.metrics import BATCHES, BUSY, GAUGES
from dashboards.board import PATH, as_json

ROOT = Path(__file__).parents[2] / "dashboards"
BOARD = json.loads(PATH.read_text())
RULES = [
    rule for group in yaml.safe_load((ROOT / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]
]
QUERIES = [(panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel["targets"]]


def substituted(query: str, profile: str = "test") -> str:
    """A panel's query as Grafana sends it."""
    return query.replace("$profile", profile).replace("$__rate_interval", "20s")


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Names of metrics in a query, with the labels that they are chosen by."""
    promql_parser.parse(query)
    found = re.findall(r"\b(ray_winnow_\w+)(?:\{([^}]*)\})?", query)
    return [(name, set(re.findall(r"(\w+)\s*=", labels))) for name, labels in found]


def test_the_committed_dashboard_is_what_the_script_makes() -> None:
    assert PATH.read_text() == as_json(), "run `make dashboards`"


@pytest.mark.parametrize(
    ("where", "query"),
    [*((title, substituted(query)) for title, query in QUERIES), *((rule["alert"], rule["expr"]) for rule in RULES)],
)
def test_queries_are_promql_on_metrics_that_there_are(where: str, query: str) -> None:
    found = selectors(query)
    assert found
    for name, labels in found:
        plain = name.removeprefix("ray_").removesuffix("_bucket")
        keys = {"filter", "le"} if plain in (BATCHES[0], BUSY[0]) else set(GAUGES[plain][0])
        assert labels <= keys | {"profile", "job"}, where


def test_the_dashboard_shows_every_metric_that_people_watch() -> None:
    shown = {name for _, query in QUERIES for name, _ in selectors(substituted(query))}
    extra = {"winnow_samples_listed", "winnow_filter_scored", "winnow_filter_failed"}
    wanted = {*(GAUGES.keys() - extra), f"{BATCHES[0]}_bucket", BUSY[0]}
    assert shown == {f"ray_{name}" for name in wanted}


def test_panels_lie_side_by_side_and_ask_the_chosen_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "profile"]


def test_rules_say_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_compose_mounts_what_there_is_and_listens_on_loopback() -> None:
    """Docker itself is not asked: structure, paths, pinned images."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == {"prometheus", "grafana"}
    inside: dict[str, dict[str, Path]] = {}
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        mounts = {mount["target"]: mount for mount in service["volumes"] if isinstance(mount, dict)}
        assert all(mount["read_only"] for mount in mounts.values())
        inside[name] = {
            target: ROOT / mount["source"] for target, mount in mounts.items() if mount["source"].startswith("./")
        }
        assert all(folder.is_dir() for folder in inside[name].values())
        assert mounts["/tmp/ray"]["bind"] == {"create_host_path": False}
        named = [mount.split(":")[0] for mount in service["volumes"] if isinstance(mount, str)]
        assert set(named) <= set(compose["volumes"])
    arguments = dict(
        argument.removeprefix("--").split("=") for argument in compose["services"]["prometheus"]["command"]
    )
    assert located(inside["prometheus"], arguments["config.file"]) == ROOT / "prometheus/prometheus.yml"
    assert arguments["web.listen-address"].startswith("127.0.0.1:")
    assert compose["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    provisioning = located(inside["grafana"], "/etc/grafana/provisioning")
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://{arguments['web.listen-address']}"
    ours, rays = yaml.safe_load((provisioning / "dashboards/winnow.yml").read_text())["providers"]
    assert PATH.parent == located(inside["grafana"], ours["options"]["path"])
    assert rays["options"]["path"].startswith("/tmp/ray/session_latest/")


def located(mounts: dict[str, Path], path: str) -> Path:
    """Where a path of a container lies here."""
    target = max((target for target in mounts if path == target or path.startswith(f"{target}/")), key=len)
    found: Any = mounts[target] / path.removeprefix(target).lstrip("/")
    return Path(found)
