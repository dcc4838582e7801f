"""Order: a permutation of all samples, divided into lanes, in chunks that stay in their shards; exact mixtures."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import Order, Run, choose


def lane(order: Order, number: int, epoch: int = 0) -> list[Run]:
    """The runs of a lane in an epoch."""
    size, found, taken = order.size(number), list[Run](), 0
    while taken < size:
        found.append(order.run(number, epoch * size + taken))
        taken += len(found[-1].rows)
    assert taken == size  # a run never goes on into the next epoch
    return found


def places(runs: list[Run], counts: list[int]) -> list[int]:
    starts = np.cumsum([0, *counts])
    return [int(starts[run.shard]) + run.start + int(row) for run in runs for row in run.rows]


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    return counts, draw(st.integers(1, 50)), draw(st.integers(1, min(16, sum(counts)))), draw(st.integers(0, 9))


@given(orders(), st.integers(0, 3))
@settings(deadline=None, max_examples=150)
def test_lanes_partition_a_permutation_in_chunks_of_one_shard(
    made: tuple[list[int], int, int, int], epoch: int
) -> None:
    counts, chunk, lanes, seed = made
    order = Order(np.array(counts), chunk, lanes, seed)
    found = [lane(order, number, epoch) for number in range(lanes)]
    assert sorted(place for runs in found for place in places(runs, counts)) == list(range(sum(counts)))
    assert [order.size(number) for number in range(lanes)] == [len(places(runs, counts)) for runs in found]
    assert max(map(order.size, range(lanes))) == order.size(lanes - 1)
    assert order.size(lanes - 1) - min(map(order.size, range(lanes))) <= 1
    for run in (run for runs in found for run in runs):
        assert 0 <= run.start < run.stop <= counts[run.shard]
        assert run.stop - run.start == min(chunk, counts[run.shard] - run.start)
        assert run.start % chunk == 0
        assert 0 <= run.rows.min() <= run.rows.max() < run.stop - run.start


@given(orders(), st.integers(0, 100))
@settings(deadline=None)
def test_a_run_may_begin_anywhere(made: tuple[list[int], int, int, int], taken: int) -> None:
    counts, chunk, lanes, seed = made
    order = Order(np.array(counts), chunk, lanes, seed)
    epoch, at = divmod(taken, order.size(0))
    whole = places(lane(order, 0, epoch), counts)
    run = order.run(0, taken)
    assert places([run], counts) == whole[at : at + len(run.rows)]


def test_seed_epoch_and_chunk_all_change_the_order() -> None:
    def of(seed: int, epoch: int) -> list[int]:
        return places(lane(Order(np.array([1000] * 5), 50, 1, seed), 0, epoch), [1000] * 5)

    assert of(0, 0) == of(0, 0)
    firsts = {tuple(of(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(firsts) == 4
    runs = lane(Order(np.array([1000] * 5), 50, 1, 0), 0)
    assert len({tuple(run.rows) for run in runs}) == 100  # not the same permutation in each chunk
    assert [(run.shard, run.start) for run in runs] != sorted((run.shard, run.start) for run in runs)


def test_many_lanes_stand_in_different_epochs() -> None:
    order = Order(np.array([7, 30, 5]), 4, 3, 1)
    for taken in (0, 15, 31, 45, 1, 100, 3):
        for number in range(3):
            assert len(order.run(number, taken).rows)


def test_1_4_billion_samples() -> None:
    tracemalloc.start()
    before = time.process_time()
    order = Order(np.full(140_000, 10_000), 256, 1024, 0)
    first = order.run(1023, 0)
    spent = time.process_time() - before
    again = time.process_time()
    for taken in range(0, 1_300_000, 13_000):
        order.run(5, taken)
    each = (time.process_time() - again) / 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.nsamples == 1_400_000_000
    assert len(first.rows)
    assert peak < 250e6, peak
    assert spent < 10, spent
    assert each < 0.005, each


shares = st.lists(st.integers(1, 1000), min_size=1, max_size=9).map(lambda raw: [each / sum(raw) for each in raw])


@given(shares, st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_a_mixture_is_within_one_of_its_shares_at_any_time(wanted: list[float], steps: int) -> None:
    taken = [0] * len(wanted)
    for count in range(1, steps + 1):
        taken[choose(wanted, taken)] += 1
        assert all(abs(had - share * count) <= 1 + 1e-9 for had, share in zip(taken, wanted, strict=True))


def test_a_mixture_is_exact_where_it_can_be() -> None:
    taken = [0, 0, 0]
    for count in range(1, 41):
        taken[choose([0.5, 0.25, 0.25], taken)] += 1
        if count % 4 == 0:
            assert taken == [count // 2, count // 4, count // 4]
