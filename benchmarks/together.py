"""A filter for runs that measure nothing but a start-up: no unit ends before every core has one.

Else the first process that is up does all of a tiny input, and the start of the others counts as work of the full run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from filters.base import Filter

# A machine without memory for a process a core goes on without them.
_PATIENCE_S = 60.0


class Together(Filter):
    """Keeps everything; waits until `processes` processes have been asked, each of which leaves a file in `folder`."""

    name = "together"
    version = "1"
    folder: str
    processes: int

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"waited": pa.bool_()}

    def score(self, samples: pa.Table) -> dict[str, pa.Array]:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + _PATIENCE_S
        while len(list(folder.iterdir())) < self.processes and time.monotonic() < deadline:
            time.sleep(0.02)
        return {"waited": pa.array([True] * len(samples), pa.bool_())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return pa.array([True] * len(scores), pa.bool_())
