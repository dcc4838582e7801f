"""Whole runs without Ray: the steps of a unit as plain functions, and what the driver writes before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curation.commit import commit
from curation.opened import Opened, open_run
from curation.plan import make_plan
from curation.profile import Profile
from curation.run import finish, write_run
from curation.unit import drop_images, judge, score_pixels

BRIGHT = {"bright": {"filter": "tests.curation.plugins:Bright", "min": 122.0}}


def run_whole(checked: Profile) -> Opened:
    """All units of a profile in this process, pixels too, with run.json and manifest.json."""
    plan = make_plan(checked)
    write_run(plan)
    scorers = {label: rule.setup() for label, rule in checked.cheap.items()}
    pixel = {label: rule.setup() for label, rule in checked.pixel.items()}
    for unit in plan.pending:
        judged = judge(checked, plan.input, unit, scorers)
        drop_images(checked, judged)
        score_pixels(checked, judged, pixel)
        drop_images(checked, judged)
        commit(checked, plan.prints, judged, plan.output)
    finish(plan, [])
    return open_run(checked.run_folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run's or a selected decision's folder that must be the same bytes in every run."""
    files = [path for kind in ("ledger", "shards", "samples") for path in sorted((folder / kind).glob("*"))]
    files += [folder / "manifest.json", folder / "shards.txt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def units_of(folder: Path) -> list[dict[str, Any]]:
    """The unit manifests of a folder, without what differs between two runs."""
    found = [json.loads(path.read_bytes()) for path in sorted((folder / "units").glob("*.json"))]
    return [{name: value for name, value in unit.items() if name not in ("seconds", "sha256")} for unit in found]
