"""A small run, its later decisions, and fresh runs with their thresholds to compare with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import yaml

from curation.config import load
from curation.manifests import read_all
from curation.profile import Profile
from shards.check import check
from shards.storage import Storage
from tests.curation.pairs import CHEAP, Member, flat, good_pairs, image, pair, write_tar
from tests.curation.runs import bytes_of, run_whole

FILTERS: dict[str, Any] = {
    **CHEAP,
    "min_size": {"short_side": 200},
    "bright": {"filter": "tests.curation.plugins:Bright", "min": 124.0},
}
# From the shards at hand alone; from the raw input as well; only with scores that the run did not make.
TIGHTER = ("bright.min=128", "text_length.min_words=6")
LOOSER = ("bright.min=121",)
MISSING = ("bright.min=125", "min_size.short_side=140")


def write_input(folder: Path, files: int, samples: int = 6) -> int:
    """Tars of real images, a half of them dark, some too small, some with short captions, one unreadable each."""
    for number in range(files):
        first = number * 100
        members: list[list[Member]] = good_pairs(samples, first)
        members += [
            pair(
                f"{first + 50 + seed:09d}", f"A small photo of thing number {seed}", image(160, 180, seed=first + seed)
            )
            for seed in range(3)
        ]
        members.append(pair(f"{first + 60:09d}", "A red thing here", image(seed=first + 60)))
        members.append(pair(f"{first + 61:09d}", "A photo that was cut off", image()[:700]))
        write_tar(folder / f"in/{number:05d}.tar", flat(members))
    return files * (samples + 5)


def configure(folder: Path, runs: Path | str | None = None, **settings: Any) -> Path:
    """A configuration that reads `folder/in`; runs: where to write; None: `folder/runs`."""
    fields = {
        "input": {"path": str(folder / "in"), "format": "webdataset"},
        "filters": FILTERS,
        "output": {"path": str(runs or folder / "runs")},
        **settings,
    }
    path = folder / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"test": fields}}, sort_keys=False))
    return path


def checked(config: Path, *sets: str) -> Profile:
    return load(config).profile("test", sets)


def options(config: Path, sets: tuple[str, ...]) -> list[str]:
    """The arguments that name the profile and its thresholds."""
    return ["test", "--config", str(config), *(part for text in sets for part in ("--set", text))]


def fresh(folder: Path, config: Path, sets: tuple[str, ...]) -> Path:
    """The folder of a new run with these thresholds, in `folder`."""
    profile = checked(config, *sets, f"output.path={folder}")
    run_whole(profile)
    return folder / "test"


def decision_of(config: Path, sets: tuple[str, ...]) -> Path:
    """Where the decision of these thresholds lies."""
    profile = checked(config, *sets)
    return Path(profile.run_folder) / "decisions" / profile.fingerprints().decision


def units_of(folder: Path, where: str = "units") -> list[dict[str, Any]]:
    """All unit manifests, compacted or not, by unit, without what differs between two runs."""
    found = sorted(read_all(Storage.open(str(folder)), folder=where), key=lambda manifest: str(manifest["unit_id"]))
    return [{name: value for name, value in unit.items() if name not in ("seconds", "sha256")} for unit in found]


def same_as(folder: Path, expected: Path) -> None:
    """A run's folder is, but for times, that of another run, and whole."""
    assert bytes_of(folder) == bytes_of(expected)
    assert units_of(folder) == units_of(expected)
    must_be_clean(folder)


def must_be_clean(folder: Path) -> None:
    """Nothing is amiss, half-written, unfinished or taken."""
    report = check(Storage.open(str(folder)), workers=1)
    assert (report.faults, report.notes) == ([], [])
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert not list((folder / "attempts").glob("*"))
    assert not list((folder / "failed").glob("*"))
    assert not (folder / "lease.json").exists()


def state_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, without those of its decisions."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "decisions" not in path.relative_to(folder).parts
    }


def copied(source: Path, folder: Path, runs: Path | None = None, **settings: Any) -> Path:
    """A configuration for a copy of `source` (input and run) in the new `folder`."""
    shutil.copytree(source, folder)
    return configure(folder, runs, **settings)


def said_of(processes: list[psutil.Process]) -> list[str]:
    """Which of them still live."""
    return [" ".join(process.cmdline()) for process in processes if process.is_running()]


def decision_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "decision.json").read_text())
    return record
