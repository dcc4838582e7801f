"""Which sample comes when: a seeded permutation of chunks, divided into lanes, and mixtures without dice.

The one decision: everything is a pure function of seed, epoch, lane and a count. No rank and no worker is in it, so the
order is the same on any number of them, and a position is a number. Chunks are never listed: 5.5 M of them, 1.4 G
samples, are a permutation and a cumulative sum, 66 MB, made once an epoch in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.source import Whole


class Run(NamedTuple):
    """What is left of a chunk: samples [start, stop) of a shard are read, `rows` are taken, counted from start."""

    shard: int
    start: int
    stop: int
    rows: Whole


class Order:
    """All samples of some shards, once each epoch; lane l of L has places [l * N / L, (l + 1) * N / L) of every epoch.

    counts: samples of each shard. chunk: samples that are read at once, at most; never of two shards.
    """

    def __init__(self, counts: Whole, chunk: int, lanes: int, seed: int) -> None:
        self._counts, self._chunk, self._lanes, self._seed = counts, chunk, lanes, seed
        self._chunks = np.concatenate([[0], np.cumsum(-(-counts // chunk))])  # the first chunk of each shard
        self._epochs: dict[int, tuple[NDArray[np.int32], Whole]] = {}
        self.nsamples = int(counts.sum())

    def size(self, lane: int) -> int:
        """Samples of a lane in an epoch; the last lane is one of the longest."""
        return (lane + 1) * self.nsamples // self._lanes - lane * self.nsamples // self._lanes

    def run(self, lane: int, taken: int) -> Run:
        """What comes in a lane after `taken` samples, in the epoch that they reach; never empty."""
        first = lane * self.nsamples // self._lanes
        epoch, at = divmod(taken, self.size(lane))
        chunks, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, first + at, "right"))
        chunk = int(chunks[number])
        shard = int(np.searchsorted(self._chunks, chunk, "right")) - 1
        start = (chunk - int(self._chunks[shard])) * self._chunk
        length = min(self._chunk, int(self._counts[shard]) - start)
        before = int(ends[number]) - length
        rows = np.random.Generator(np.random.PCG64([self._seed, epoch, chunk])).permutation(length)
        return Run(shard, start, start + length, rows[first + at - before : first + self.size(lane) - before])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int32], Whole]:
        """The chunks in their order, and the place behind each."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # lanes of packs stand in two at a time, but for very small data sets
                del self._epochs[min(self._epochs)]
            lengths = np.full(self._chunks[-1], self._chunk, np.int32)
            lengths[self._chunks[1:] - 1] = self._counts - (np.diff(self._chunks) - 1) * self._chunk
            chunks = np.arange(len(lengths), dtype=np.int32)
            np.random.Generator(np.random.PCG64([self._seed, epoch])).shuffle(chunks)
            self._epochs[epoch] = chunks, np.cumsum(lengths[chunks], dtype=np.int64)
        return self._epochs[epoch]


def choose(shares: Sequence[float], taken: Sequence[int]) -> int:
    """The source of the next sample, after `taken` of each. shares: of sum 1.

    Of those whose turn it may be, the one that would first fall behind (Tijdeman 1980, "The chairman assignment
    problem"): every count is always within 1 of its share. To take the one most behind passes 1 where sources are many.
    """
    if len(shares) == 1:
        return 0
    count, slack = sum(taken) + 1, 1 / (2 * len(shares) - 2)
    turn = [number for number, share in enumerate(shares) if share * count - taken[number] >= slack]
    return min(turn, key=lambda number: (taken[number] + 1 - slack) / shares[number])
