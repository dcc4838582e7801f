"""What the owner of an image says of its use: the X-Robots-Tag header.

The one decision: it is read here. img2dataset takes all before the first colon for a crawler's name, so that the common
`noindex, max-image-preview: large` and `*: noai` would be fetched against their owners' word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Each of them keeps the image out: img2dataset's four, and `none`, which means noindex and nofollow.
REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
# Directives that have a value behind a colon; any other word before a colon is a crawler's name.
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_WORD = re.compile(r"\s*([A-Za-z0-9_.*/-]+)\s*(:?)\s*")


def refuses(headers: Iterable[str], agent: str | None) -> bool:
    """Whether any X-Robots-Tag header forbids the use: addressed to all, to `*`, or to `agent` by its name.

    A crawler's name is followed by a colon and holds for the rest of its header. agent: a name of letters, digits,
    - and _; None has none.
    """
    return any(_refuses(value, agent.lower() if agent else None) for value in headers)


def _refuses(value: str, agent: str | None) -> bool:
    meant = True
    for part in value.split(","):
        while (match := _WORD.match(part)) is not None:
            word = match[1].lower()
            if match[2] and word in _VALUED:
                break  # what follows is its value
            if match[2]:
                meant = word in ("*", agent)
            elif meant and word in REFUSALS:
                return True
            part = part[match.end() :]
    return False
