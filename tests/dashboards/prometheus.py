"""A real Prometheus, with the committed configuration and targets of the test's own."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.curation.test_submit import free_ports

FOLDER = Path(__file__).parents[2] / "dashboards/prometheus"
# Labels and (time, value) of one series.
Series = tuple[dict[str, str], list[tuple[float, float]]]


def installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} here: install Debian's package prometheus")
    return found


class Prometheus:
    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self._url, self._process = url, process

    def ask(self, query: str, at: float | None = None) -> dict[tuple[str, ...], float]:
        """An instant query, now or then: value by the values of its labels, in the order of their names."""
        result = self._get("query", query=query, time=str(time.time() if at is None else at))
        return {
            tuple(value for name, value in sorted(one["metric"].items()) if name != "__name__"): float(one["value"][1])
            for one in result
        }

    def over(self, query: str, start: float) -> list[Series]:
        """What a panel that shows the time since `start` gets, without values that are no numbers."""
        found = self._get("query_range", query=query, start=str(start), end=str(time.time()), step="2")
        rows = [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in found]
        return [
            (labels, told) for labels, values in rows if (told := [pair for pair in values if math.isfinite(pair[1])])
        ]

    def ready(self) -> bool:
        assert self._process.poll() is None, "prometheus ended"
        try:
            urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).close()
        except OSError:
            return False
        return True

    def rules(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self._url}/api/v1/rules", timeout=30) as answer:
            return [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


@contextmanager
def prometheus(folder: Path, discovery: Path, pace: str = "2s") -> Iterator[Prometheus]:
    """Scrapes what Ray's service discovery file names. pace: faster than the committed ten seconds, for a short run."""
    program = installed("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = config["global"]["evaluation_interval"] = pace
    (ray,) = [job for job in config["scrape_configs"] if job["job_name"] == "ray"]
    ray["file_sd_configs"][0]["files"] = [str(discovery)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(FOLDER / "rules.yml", folder)
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
    )
    try:
        started = Prometheus(f"http://127.0.0.1:{port}", process)
        deadline = time.monotonic() + 60
        while not started.ready():
            assert time.monotonic() < deadline, "prometheus does not answer"
            time.sleep(0.1)
        yield started
    finally:
        process.terminate()
        process.wait(20)
