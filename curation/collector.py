"""Python's cyclic garbage collector, out of the way of a unit.

The one decision: a unit makes some hundred thousand objects that live until it ends and hold no cycles. The collector
goes over all of them again and again, a tenth of a unit's time, and finds nothing; what it has to find, it finds after.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """The collector rests, and goes on afterwards if it was on. Also a decorator; may be nested."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
