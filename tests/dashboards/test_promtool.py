"""What Prometheus itself says of its configuration and the alert rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.dashboards.prometheus import FOLDER, installed

TESTS = Path(__file__).parent / "rules_test.yml"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", FOLDER / "prometheus.yml"),
        ("check", "rules", FOLDER / "rules.yml"),
        ("test", "rules", TESTS),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_promtool(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run([installed("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_tested_each() -> None:
    """Each alert is seen to fire and not to."""
    text = TESTS.read_text()
    names = [line.split()[-1] for line in (FOLDER / "rules.yml").read_text().splitlines() if "- alert:" in line]
    assert names
    for name in names:
        assert f"alertname: {name}, " in text, f"{name} is never seen not to fire"
        assert f"alertname: {name}\n" in text, f"{name} is never seen to fire"
