"""The Ray that a job runs on: connected to or started, watched, and left in order.

The one decision: what Ray's own processes write is kept from the terminal, and its end is told in one line of ours.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from curation import lease
from curation.head import messages_in_log, not_ray, watched
from curation.profile import Profile
from curation.resources import Node, shortage
from curation.termination import Terminated, handler_kept
from curation.unit import describe


class JobError(Exception):
    """The job as a whole cannot go on: one line."""


# A worker without work is ended after a second; beside a CLIP stage tasks come seldom, and each would start a process
# anew: 1.5 CPU-seconds.
_IDLE_WORKERS = ("RAY_idle_worker_killing_time_threshold_ms", "600000")


class RayGaveUp(JobError):
    """Ray did not start, or ended the job by itself."""


@contextmanager
def cluster(address: str | None, metrics_port: int | None = None) -> Iterator[list[Node]]:
    """Connects to `address` or RAY_ADDRESS, else starts Ray on this machine and stops it afterwards; gives its nodes.

    A Ray that this process is already connected to is used and left running. metrics_port: where a Ray that is started
    here shows its metrics to Prometheus; one that runs already has a port of its own.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and "ray" not in sys.modules:
        # Ray's own default for a local start, said aloud: other users of this machine must not reach the cluster.
        # Only before the import: Ray reads it there, and a later value starts servers that the driver cannot talk to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address == "local":
        os.environ.setdefault(*_IDLE_WORKERS)
    import ray

    metrics = {} if metrics_port is None else _metrics_at(metrics_port, address, ray.is_initialized())
    if ray.is_initialized():
        yield nodes()
        return
    if wrong := not_ray(address):
        raise JobError(wrong)
    with _core_log() as log, messages_in_log():
        try:
            options: dict[str, Any] = {"include_dashboard": False, **metrics} if address == "local" else {}
            with handler_kept():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except Terminated:
            # Ray has ended its processes; its core, caught half made, would abort this one at a usual exit.
            atexit.register(os._exit, 143)
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise RayGaveUp(f"no Ray at {address!r} ({describe(error)}): check --address, or leave it out") from error
        try:
            with ExitStack() as stack:
                if not address.startswith("ray://"):  # its client tells by itself when its server is lost
                    stack.enter_context(watched(ray.get_runtime_context().gcs_address, log, lease.release_all))
                yield nodes()
        finally:
            ray.shutdown()


def _metrics_at(port: int, address: str, runs: bool) -> dict[str, Any]:
    """What `ray.init` is told to show metrics at a port. Raises `JobError` where Ray cannot, or would wait in vain."""
    if runs or address != "local":
        raise JobError(
            f"--metrics-port {port}: the Ray {'of this process' if runs else f'at {address!r}'} runs already, with a "
            "port of its own (`ray start --metrics-export-port`): leave the option out"
        )
    try:
        import ray.dashboard.optional_deps  # noqa: F401  Ray's own list of what its agent needs
    except ImportError as error:
        raise JobError(
            f"--metrics-port {port}: Ray's metrics need more than ray[data]: install winnow-vl[cluster] ({error})"
        ) from error
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
    except (OSError, OverflowError) as error:
        raise JobError(f"--metrics-port {port}: cannot be had ({error}): give another one") from error
    return {"_metrics_export_port": port}


def nodes() -> list[Node]:
    """What each living node has, by Ray's names of resources."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def must_fit(profile: Profile, there: Sequence[Node], address: str | None) -> str | None:
    """Raises `JobError` where this machine's Ray can never run the job; a cluster may grow, so there it is a notice."""
    lacking = shortage(profile, there)
    if lacking and (address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        raise JobError(lacking)
    return lacking and f"waiting for the cluster to grow: {lacking}"


@contextmanager
def _core_log() -> Iterator[str]:
    """Sends what Ray's C++ core writes to file descriptor 2 to a file; Python's own stderr goes on as before.

    The core complains there about things that are none of the user's (constructor arguments of Ray Data's own actors).
    Gives the file's path; the file stays, and is named, where Ray gives up.
    """
    sys.stderr.flush()
    terminal, python_stderr = os.dup(2), sys.stderr
    descriptor, path = tempfile.mkstemp(prefix="winnow-ray-", suffix=".log")
    os.dup2(descriptor, 2)
    os.close(descriptor)
    with open(terminal, "w", buffering=1, encoding=python_stderr.encoding, errors="backslashreplace") as stderr:
        sys.stderr = stderr
        wanted = False
        try:
            yield path
        except RayGaveUp as error:
            wanted = True
            raise RayGaveUp(f"{error} (Ray's own log: {path})") from error
        finally:
            os.dup2(terminal, 2)
            sys.stderr = python_stderr
            if not wanted:
                os.unlink(path)
