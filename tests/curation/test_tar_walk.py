"""What planning tells a range of the bytes before it is what reading them would tell."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from curation.tar_walk import count_keys, cut_tar, samples_of
from shards.storage import Storage
from tests.curation.pairs import flat, pair, write_tar


@pytest.mark.parametrize("max_samples", [1, 2, 7, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_earlier_keys_are_those_that_a_walk_counts(tmp_path: Path, seed: int, max_samples: int) -> None:
    chance = random.Random(seed)
    names = [f"{chance.randrange(12)}{chance.choice(['', '', '.v1', '.v2'])}" for _ in range(60)]
    path = write_tar(tmp_path / "a.tar", flat(pair(name, "x", b"picture") for name in names))
    storage, size = Storage.open(str(tmp_path)), path.stat().st_size
    ranges = cut_tar(storage, "a.tar", size, max_samples, size)
    assert (ranges[0].start, ranges[-1].stop) == (0, size)
    assert all(left.stop == right.start for left, right in itertools.pairwise(ranges))
    total: Counter[str] = Counter()
    for part in ranges:
        keys = Counter(sample.key for sample in samples_of(path.read_bytes(), part.start, part.stop)[0])
        before, damage = count_keys(storage, "a.tar", size, 0, part.start)
        assert (before if part.start else Counter(), damage) == (total, None)
        assert part.earlier == {key: total[key] for key in keys if total[key]}
        assert part.key_width == len(next(iter(before or keys)))
        total += keys
    assert any(part.earlier for part in ranges) == (len(ranges) > 1)


def test_damage_is_told_after_the_keys_before_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", flat(pair(str(number), "x", b"picture") for number in range(5)))
    data = path.read_bytes()[:9000]
    path.write_bytes(data)
    keys, damage = count_keys(Storage.open(str(tmp_path)), "a.tar", len(data), 0, None)
    assert list(keys) == ["0", "1", "2", "3", "4"]
    assert damage is not None
    assert "cut off at byte 9000" in damage
    assert len(cut_tar(Storage.open(str(tmp_path)), "a.tar", len(data), 2, 10**9)) == 3
