"""Samples joined to packs by their token counts: first fit among the few packs that a lane has open.

The one decision: nothing but counts decides, so no image is decoded before its pack is closed, and open packs are told
by the places of their samples: a run that goes on reads these again and has the same packs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainer.data.batch import Encoded


class Item(NamedTuple):
    """A sample on its way into a batch. place: among all. source: its manifest's number. images: as files."""

    encoded: Encoded
    place: int = -1
    source: int = -1
    shard: str = ""
    key: str = ""
    images: tuple[bytes | memoryview, ...] = ()


@dataclass
class Packer:
    """The packs that a lane has open, the oldest first. length, images: tokens and images of one, at most."""

    length: int
    images: int
    bins: int
    by_task: bool
    open: list[list[Item]]

    def add(self, item: Item) -> list[Item] | None:
        """Takes a sample that fits into a pack of its own; gives the fullest pack where none of `bins` has room."""
        pack = next((pack for pack in self.open if self._fits([*pack, item])), None)
        if pack is not None:
            pack.append(item)
            return None
        full = len(self.open) >= self.bins
        closed = self.open.pop(max(range(self.bins), key=lambda number: _tokens(self.open[number]))) if full else None
        self.open.append([item])
        return closed

    def _fits(self, pack: list[Item]) -> bool:
        one_task = not self.by_task or pack[0].encoded.task == pack[-1].encoded.task
        images = sum(item.encoded.images for item in pack)
        return one_task and images <= self.images and _tokens(pack) <= self.length


def _tokens(pack: list[Item]) -> int:
    return sum(len(item.encoded.ids) for item in pack)
