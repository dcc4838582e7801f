"""The trainer's commands, from a shell."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def help_of(*command: str) -> str:
    """What a command's --help says: at once (it takes 0.03 to 0.2 s), and without the libraries that take seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 5
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not {"torch", "transformers", "open_clip"} & imported
    return done.stdout
