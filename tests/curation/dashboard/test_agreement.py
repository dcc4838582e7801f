"""Page, report and `stats` say the same of a run at every moment: while it grows, after a kill, after its resume."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from curation.opened import open_run
from curation.run import run
from tests.curation.dashboard.served import Served, serving
from tests.curation.pairs import profile, write_config
from tests.curation.processes import driver
from tests.curation.report.runs import html_of
from tests.curation.test_kills import SLOW, same_as_undisturbed, some_input

pytestmark = pytest.mark.usefixtures("ray_local")


def tables_of(soup: BeautifulSoup) -> dict[str, str]:
    """All tables of numbers by caption."""
    found = {table.caption.get_text(): table.get_text("|") for table in soup.find_all("table") if table.caption}
    return {name: text for name, text in found.items() if name not in ("Bars in numbers", "Of this run")}


def agree(server: Served, at: str, config: Path, folder: Path) -> dict[str, Any]:
    """Compares all of them; gives what `stats --json` says."""
    told = subprocess.run(
        [sys.executable, "-m", "curation", "stats", "test", "--config", str(config), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    numbers: dict[str, Any] = json.loads(told.stdout)
    for each in server.runs.all().values():
        each._looked = 0.0
    live, scores = server.get(f"{at}/live").json, server.get(f"{at}/scores").json
    assert (scores["seen"], scores["kept"], scores["retention"]) == tuple(
        numbers[name] for name in ("seen", "kept", "retention")
    )
    report = tables_of(BeautifulSoup(html_of(open_run(str(folder / "runs/test"))), "html.parser"))
    page = tables_of(BeautifulSoup("".join(live["fragments"].values()), "html.parser"))
    assert page.keys() <= report.keys()
    assert len(page) > 4
    for name, text in page.items():
        assert text == report[name], name
    assert re.search(rf"kept\|{numbers['kept']:,}\|", page["Funnel, in the order of execution"].replace("||", "|"))
    # What the ledger's rows say, counted one by one.
    units = [row["unit_id"] for row in open_run(str(folder / "runs/test")).units()]
    assert len(units) == numbers["units"]
    cards = server.get(f"{at}/search?reason=kept").json
    assert cards["more"] or len(cards["rows"]) == numbers["kept"]
    return numbers


def test_a_run_is_followed_through_a_kill_and_its_resume(tmp_path: Path) -> None:
    units = 6
    samples = some_input(tmp_path, units)
    config = write_config(tmp_path, filters=SLOW)
    made = tmp_path / "runs/test/units"
    seen = [0]
    with driver(tmp_path / "driver.log", "run", "--config", config) as victim:
        victim.wait_until(lambda: list(made.glob("*.json")), "the first unit")
        with serving([str(tmp_path / "runs")]) as server:
            at = server.run(str(tmp_path / "runs/test"))
            while len(list(made.glob("*.json"))) < 3:  # a look never tells of a part of a unit, nor fewer than before
                answer = server.get(f"{at}/scores").json
                assert answer["seen"] % 5 == 0
                assert answer["kept"] == answer["seen"] // 5 * 3
                assert answer["seen"] >= seen[-1]
                seen.append(answer["seen"])
            assert server.get(f"{at}/live").json["at_work"] is True
            victim.send(signal.SIGKILL)
            victim.reap()  # its workers would go on to commit for some seconds
            half = agree(server, at, config, tmp_path)
            assert half["complete"] is False
            assert server.get(f"{at}/live").json["at_work"] is False
            assert "Not complete" in server.get(at).text
            assert not run(profile(tmp_path, filters=SLOW)).failed
            end = agree(server, at, config, tmp_path)
    assert (end["units"], end["seen"], end["kept"], end["complete"]) == (units, 5 * units, 3 * units, True)
    assert half["units"] <= end["units"]
    same_as_undisturbed(tmp_path, samples, filters=SLOW)
