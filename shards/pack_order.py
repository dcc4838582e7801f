"""The order of a packed data set: a permutation of all its samples that is computed, never stored.

The one decision behind this module: a billion samples shuffled as a list would be 8 GB that every process needs. Here
any process computes the place of any sample from the seed alone, in about 7 microseconds, and the places of all samples
are each taken once: a Feistel network on the numbers below the count (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002, the generalized network with two moduli).
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property

# Four rounds cannot be told from chance by who sees a few samples; here all are seen. With fewer than twelve, sets of
# six samples are not shuffled into all their orders equally often.
_ROUNDS = 12
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Permutation:
    """A shuffle of the numbers 0 to `size` - 1, the same on every machine and for every release of Python."""

    size: int
    seed: int

    def places(self, start: int, stop: int) -> list[int]:
        """Where the numbers from `start` to `stop` - 1 stand after the shuffle."""
        (rows, columns), keys, size = self._sides, self._keys, self.size
        found = []
        for number in range(start, stop):
            place = number
            while True:  # the rectangle is a little larger than the count: on from what lies outside
                left, right = divmod(place, columns)
                for first, second in keys:
                    # Each line is one step of a 64-bit mixing function (the finalizer of MurmurHash3), keyed by a sum.
                    mixed = (right + first) & _MASK
                    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _MASK
                    mixed = (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
                    left = (left + (mixed ^ mixed >> 33)) % rows
                    mixed = (left + second) & _MASK
                    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _MASK
                    mixed = (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
                    right = (right + (mixed ^ mixed >> 33)) % columns
                place = left * columns + right
                if place < size:
                    break
            found.append(place)
        return found

    @cached_property
    def _sides(self) -> tuple[int, int]:
        """Rows and columns of a rectangle that holds all numbers, nearly square.

        The number of columns is even: turning rows and columns of odd lengths makes even permutations only.
        """
        rows = math.isqrt(self.size - 1) + 1
        columns = -(-self.size // rows)
        return rows, columns + columns % 2

    @cached_property
    def _keys(self) -> tuple[tuple[int, int], ...]:
        digest = hashlib.shake_256(f"{self.size} {self.seed}".encode()).digest(8 * _ROUNDS)
        keys = struct.unpack(f"<{_ROUNDS}Q", digest)
        return tuple(zip(keys[::2], keys[1::2], strict=True))
