"""Fixtures of more than one package."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job: the processes that tests interrupt would inherit it and never notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small Ray of this process for all tests that need one; started by the first of them."""
    # A local Ray otherwise turns token authentication on, for this machine and for good.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=500_000_000,
    )
    yield
    ray.shutdown()
