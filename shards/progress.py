"""Progress of a command: a bar on a terminal, elsewhere a line now and then.

The one decision behind this module: it is drawn when it is told something, so there is no thread, and none is needed.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

# Without a terminal: a line at most this often, seconds.
LINE_EVERY = 10.0


class Progress:
    """Counts what is done of something; `what`: the command's name."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm[NoReturn] | None = None
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def told(self, done: int, of: int, said: str = "") -> None:
        """So much is done; the first call may begin above 0, where work goes on that was begun before.

        said: what stands beside it; then how long the rest takes is told too, as a bar does.
        """
        if self._first is None:
            self._first = done, time.monotonic()
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=of, initial=done, desc=self._what, dynamic_ncols=True)
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            first, began = self._first
            left = (self._last - began) / max(1, done - first) * (of - done)
            more = f", {said}, {tqdm.format_interval(left)} left" if said else ""
            sys.stderr.write(f"{self._what}: {done:,}/{of:,}{more}\n")
            sys.stderr.flush()
