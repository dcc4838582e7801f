"""Environments of the peers' own: what we are compared with never shares ours, nor holds back its versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import BenchmarkError, say


def environment(folder: Path, name: str, *requirements: str) -> Path:
    """The interpreter of a virtual environment with these packages, made at its first use (minutes, some GB).

    Raises `BenchmarkError` with the last line that pip said.
    """
    home = folder / "peers" / name
    python, stamp = home / "bin/python", home / "installed.json"
    wanted = json.dumps([sys.version.split()[0], *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {', '.join(requirements)} into an environment of its own ...")
    shutil.rmtree(home, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise BenchmarkError(f"{name}: {' '.join(command[2:4])} failed: {last}")
    stamp.write_text(wanted)
    return python


def versions(python: Path, *packages: str) -> dict[str, str]:
    """Versions of packages in a peer's environment."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(subprocess.check_output([str(python), "-c", code, *packages], text=True))
    return found
