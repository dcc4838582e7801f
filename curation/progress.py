"""Progress on a terminal as a bar, elsewhere as plain lines, so that logs of a job stay readable."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

# Without a terminal: a line at most this often, seconds.
LINE_EVERY = 10.0


def say(line: str) -> None:
    """A line for people, beside the progress and apart from the results."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Counts units; shows samples, retention and failures beside them. `unit`, `kept`: what they are called."""

    def __init__(self, units: int, what: str, unit: str = "unit", kept: str = "kept") -> None:
        self.total = units
        self.what = what
        self.names = (unit, kept)
        self.units = self.samples = self.seen = self.kept = self.failed = self._told = 0
        self._started = self._last = time.monotonic()
        self._bar = (
            tqdm(total=units, desc=what, unit=unit, dynamic_ncols=True, leave=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> Self:
        if self._bar is None:
            self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.units > self._told:
            self._line()

    def unit(self, listed: int, seen: int, kept: int, failed: bool) -> None:
        """One more unit ended."""
        self.units += 1
        self.samples += listed
        self.seen += seen
        self.kept += kept
        self.failed += failed
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update(1)
        elif time.monotonic() - self._last >= LINE_EVERY:
            self._line()

    def _state(self) -> str:
        kept = f", {self.names[1]} {self.kept / self.seen:.1%}" if self.seen else ""
        failed = f", {self.failed} {self.names[0]}s failed" if self.failed else ""
        return f"{self.samples:,} samples{kept}{failed}"

    def _line(self) -> None:
        self._last, self._told = time.monotonic(), self.units
        done = f"{self.units:,}/{self.total:,} {self.names[0]}s"
        say(f"{self.what}: {done}, {self._state()}, {self._last - self._started:.0f} s")
