"""Attempt markers: a unit that kills every worker it meets is given up, a machine that goes away is no unit's fault.

The one decision behind this module: a marker is written before the work and taken away after it, so that one that is
found tells of a death; in it stands the node it happened on, and a death on a node that has died since is not counted.
"""

from __future__ import annotations

from collections.abc import Callable

from shards.storage import NotFound, Storage

FOLDER = "attempts"
# A unit whose worker died so often on nodes that live is given up: at its 4th attempt it goes to failed/.
MAX_ATTEMPTS = 3
# And so it is after so many deaths of any kind: it may be what takes its machines down.
MAX_DEATHS = 10


class GivenUp(Exception):
    """A unit is not tried again: one line."""


def begin(output: Storage, name: str, node: str, living: Callable[[], set[str]]) -> int:
    """Marks an attempt at `name` (unit and step) on `node`, and gives its number, which `end` wants back.

    living: the nodes that are alive, asked only where there were deaths. Raises `GivenUp`.
    """
    deaths: list[str] = []
    while len(deaths) < MAX_DEATHS:
        try:
            deaths.append(output.read(_marker(name, len(deaths) + 1)).decode())
        except NotFound:
            break
    if deaths:
        alive = living()
        counted = sum(place in alive for place in deaths)
        if counted >= MAX_ATTEMPTS:
            raise GivenUp(f"its worker died {counted} times")
        if len(deaths) >= MAX_DEATHS:
            raise GivenUp(f"its worker died {len(deaths)} times, mostly with its whole machine")
    output.write(_marker(name, len(deaths) + 1), node.encode())
    return len(deaths) + 1


def end(output: Storage, name: str, number: int) -> None:
    """Takes the markers of an attempt and of those before it away: the work came to an end."""
    for attempt in range(1, number + 1):
        output.delete(_marker(name, attempt))


def clear(output: Storage) -> None:
    """Takes all markers away: they count within one run."""
    for entry in output.list(FOLDER):
        output.delete(entry.path)


def _marker(name: str, number: int) -> str:
    return f"{FOLDER}/{name}.{number}"
