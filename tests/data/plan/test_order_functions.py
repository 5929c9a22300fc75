from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.data.plan.order import Order, ShardOrder, SubsetOrder, allocate, mix, permute, stream_key

KEYS = st.integers(0, 2**64 - 1)
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@settings(max_examples=40)
@given(st.integers(1, 3000), KEYS)
def test_permute_is_a_permutation_and_always_the_same(size: int, key: int) -> None:
    once = permute(np.arange(size), size, key)
    assert sorted(once.tolist()) == list(range(size))
    np.testing.assert_array_equal(once, permute(np.arange(size), size, key))


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), KEYS)
def test_sizes_and_keys_may_differ_per_element(one: int, other: int, key: int) -> None:
    position = np.concatenate([np.arange(one), np.arange(other)])
    size = np.repeat([one, other], [one, other])
    together = permute(position, size, key, size)
    apart = [permute(np.arange(n), n, key, n) for n in (one, other)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_permutations_of_different_keys_are_unrelated() -> None:
    orders = np.array([permute(np.arange(500), 500, key) for key in range(200)])
    fixed_points = (orders == np.arange(500)).sum()
    assert 120 <= fixed_points <= 290  # Poisson of mean 200, six standard deviations
    where_zero_goes = np.bincount(orders[:, 0], minlength=500)
    assert where_zero_goes.max() <= 6


def test_large_sizes_are_walked_into() -> None:
    size = 2**40 + 1
    places = permute(np.arange(1000), size, 7)
    assert len(set(places.tolist())) == 1000
    assert 0 <= places.min() < size / 50
    assert size * 0.98 < places.max() < size


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_mix_broadcasts_and_depends_on_each_word(one: int, other: int) -> None:
    words = np.array([one, other], dtype=np.uint64)
    np.testing.assert_array_equal(mix(words, 5), [mix(one, 5), mix(other, 5)])
    assert (mix(one) == mix(other)) == (one == other)
    assert mix(one, 1) != mix(one, 2)


def test_stream_keys_differ_by_seed_and_name() -> None:
    keys = {stream_key(seed, name) for seed in range(10) for name in ("base", "constraint a", "constraint b")}
    assert len(keys) == 30
    assert stream_key(3, "base") == stream_key(3, "base") < 2**64


def orders(counts: list[int], key: int) -> list[Order]:
    rows = np.flatnonzero(np.arange(sum(counts)) % 3 == 0)
    return [ShardOrder(np.array(counts), key, block_shards=3), SubsetOrder(rows, key), SubsetOrder(rows[:1], key)]


@settings(max_examples=15)
@given(COUNTS, KEYS, st.integers(0, 3000), st.integers(1, 60))
def test_a_stretch_is_its_single_calls(counts: list[int], key: int, start: int, count: int) -> None:
    for order, again in zip(orders(counts, key), orders(counts, key), strict=True):
        single = [int(again.rows(counter, 1)[0]) for counter in range(start, start + count)]
        assert order.rows(start, count).tolist() == single


@settings(max_examples=15)
@given(COUNTS, KEYS, st.integers(0, 50))
def test_each_pass_visits_each_row_once(counts: list[int], key: int, first_pass: int) -> None:
    everything, third, one = orders(counts, key)
    size = sum(counts)
    subset = list(range(0, size, 3))
    for number in (first_pass, first_pass + 1):
        assert sorted(everything.rows(number * size, size).tolist()) == list(range(size))
        assert sorted(third.rows(number * len(subset), len(subset)).tolist()) == subset
        assert one.rows(number, 1).tolist() == [0]


def test_passes_have_orders_of_their_own() -> None:
    for order in (ShardOrder(np.full(20, 50), 1), SubsetOrder(np.arange(1000), 1)):
        passes = [order.rows(number * 1000, 1000) for number in range(3)]
        agreeing = [(passes[i] == passes[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert max(agreeing) < 0.02


def test_the_base_stream_reads_block_by_block() -> None:
    counts = np.array([30, 0, 10, 25, 40, 5, 0, 17])
    rows = ShardOrder(counts, 3, block_shards=2).rows(0, counts.sum())
    shard = np.repeat(np.arange(len(counts)), counts)[rows]
    # A shard's samples all lie within its block of two shards that hold samples.
    first = {int(s): int(np.flatnonzero(shard == s)[0]) for s in set(shard.tolist())}
    by_first_use = sorted(first, key=lambda s: first[s])
    ends = np.cumsum([counts[s] for s in by_first_use])
    blocks = [set(shard[start:end].tolist()) for start, end in ((0, ends[1]), (ends[1], ends[3]), (ends[3], ends[5]))]
    assert [len(block) for block in blocks] == [2, 2, 2]
    assert len(set.union(*blocks)) == 6
    assert any(np.diff(rows[: ends[1]]) < 0), "samples are permuted within a block"


PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda p: sum(p) > 1e-3)


@given(PROBABILITIES, st.integers(0, 10_000), st.integers(1, 300), KEYS)
def test_allocation_rounds_up_or_down(weights: list[float], batch: int, batch_size: int, key: int) -> None:
    p = np.array(weights) / sum(weights)
    streams = allocate(p, batch, batch_size, key)
    counts = np.bincount(streams, minlength=len(p))
    assert len(streams) == batch_size
    assert (np.diff(streams) >= 0).all()
    assert (counts >= np.floor(batch_size * p - 1e-9)).all()
    assert (counts <= np.ceil(batch_size * p + 1e-9)).all()
    np.testing.assert_array_equal(streams, allocate(p, batch, batch_size, key))


@settings(max_examples=30)
@given(PROBABILITIES, st.integers(0, 10_000), st.integers(1, 100), KEYS)
def test_allocation_over_many_batches_stays_as_close(
    weights: list[float], first: int, batch_size: int, key: int
) -> None:
    p = np.array(weights) / sum(weights)
    batches = (allocate(p, batch, batch_size, key) for batch in range(first, first + 500))
    excess = np.cumsum([np.bincount(streams, minlength=len(p)) - batch_size * p for streams in batches], axis=0)
    # Each of a stream's two ends is off by the discrepancy of the golden-ratio sequence, which grows as log(n).
    assert np.abs(excess).max() < 4


@pytest.mark.parametrize("p", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
def test_a_stream_without_probability_gets_nothing(p: list[float]) -> None:
    streams = np.concatenate([allocate(np.array(p), batch, 7, 1) for batch in range(1000)])
    assert set(streams.tolist()) == set(np.flatnonzero(p).tolist())
