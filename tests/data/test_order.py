"""The order of the stream: what the issue of trust is about. Which sample stands where, on any number of processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.data.header import ReadOrder
from cdt.data.index import Index, ShardInfo
from cdt.data.plan import Order, SubsetOrder, stream_key
from cdt.data.planner import Planner
from cdt.data.shard import shard
from cdt.data.sources import Source
from cdt.data.stratified import StratifiedOrder, base_order, is_mixed
from cdt.data.stream import DataConfig, MixtureStream
from cdt.dual import Draws

SEED, BATCH = 5, 64
SIZES = [1, 2, 5, 40, 400, 2000]
START, LATER = np.array([0.1, 0.2, 0.0, 0.0, 0.1, 0.0]), np.array([0.0, 0.3, 0.0, 0.5, 0.0, 0.0])
ORDERS: list[ReadOrder] = ["shuffled", "stratified", "scattered"]


def numbered(classes: np.ndarray) -> Source:
    """Images that tell their own number, with their numbers as keys."""
    numbers = np.arange(len(classes))
    images = np.stack([numbers >> 8, numbers & 255], axis=1).astype(np.uint8).reshape(-1, 1, 1, 2)
    return Source(
        class_names=[str(label) for label in range(int(classes.max()) + 1)],
        keys=[f"k{number}" for number in numbers],
        classes=classes,
        shapes=np.tile(images.shape[1:], (len(classes), 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(len(classes), "train"),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Classes of one sample to thousands, in three shards: fewer than ranks."""
    root = tmp_path_factory.mktemp("data") / "shards"
    shard(numbered(np.repeat(np.arange(len(SIZES)), SIZES)), root, shard_mb=2)
    return Index.load(root)


def mixture_of(lambdas: np.ndarray) -> Draws:
    weights = np.array([1.0, *lambdas])
    return Draws(weights / weights.sum(), np.ones(len(weights)), np.ones(len(lambdas)))


def make(index: Index, *, rank: int = 0, world: int = 1, workers: int = 0, cache_mb: float = 0) -> MixtureStream:
    """A constraint for each class; those with multiplier 0 stay closed."""
    config = DataConfig(shards=str(index.root), loader_workers=workers, lambda_lag=4, cache_mb=cache_mb)
    rows = {name: np.flatnonzero(index.classes == c) for c, name in enumerate(index.class_names)}
    return MixtureStream(
        config,
        index,
        rows,
        index.classes.astype(np.int64),
        mixture_of,
        lambdas=START,
        batch_size=BATCH,
        seed=SEED,
        rank=rank,
        world=world,
    )


def keys_of(streams: list[MixtureStream], first: int, end: int) -> list[list[str]]:
    """The keys of the global batches, read from the images themselves; the multipliers change at the third."""
    batches = []
    for number in range(first, end):
        if number == 3:
            for stream in streams:
                stream.steer(LATER)
        parts = [next(stream) for stream in streams]
        pixels = torch.cat([part.images for part in parts]).add(1).mul(127.5).round().long().reshape(-1, 2)
        positions = torch.cat([part.positions for part in parts])
        assert positions.tolist() == list(range(number * BATCH, (number + 1) * BATCH))
        batches.append([f"k{high * 256 + low}" for high, low in pixels.tolist()])
    return batches


@pytest.fixture(scope="module", params=["shuffled", "scattered"])
def index(request: pytest.FixtureRequest, written: Index) -> Index:
    return replace(written, order=request.param)


@pytest.fixture(scope="module")
def reference(index: Index) -> list[list[str]]:
    return keys_of([make(index)], 0, 8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_and_loader_workers_do_not_change_the_sequence(
    index: Index, reference: list[list[str]], world: int, workers: int
) -> None:
    streams = [make(index, rank=rank, world=world, workers=workers) for rank in range(world)]
    assert keys_of(streams, 0, 8) == reference


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (4, 2)])
@pytest.mark.parametrize("cut", [2, 5])
def test_another_number_of_ranks_continues_the_sequence(
    index: Index, reference: list[list[str]], before: int, after: int, cut: int
) -> None:
    streams = [make(index, rank=rank, world=before) for rank in range(before)]
    assert keys_of(streams, 0, cut) == reference[:cut]
    states = [stream.state() for stream in streams]
    assert all(state == states[0] for state in states)
    resumed = [make(index, rank=rank, world=after) for rank in range(after)]
    for stream in resumed:
        stream.restore(states[0])
    assert keys_of(resumed, cut, 8) == reference[cut:]


def test_the_keys_are_those_of_the_plan(index: Index, reference: list[list[str]]) -> None:
    keys = index.keys()
    planner = Planner(orders_of(index), mixture_of, BATCH, slice(None), stream_key(SEED, "allocation"))
    planner.start(0, np.zeros(len(SIZES) + 1, dtype=np.int64))
    planner.steer(0, START)
    for batch, plan in zip(reference[:3], planner, strict=False):
        assert batch == [keys[row] for row in plan.rows]


def orders_of(index: Index) -> list[Order]:
    return [
        base_order(index, stream_key(SEED, "base")),
        *(
            SubsetOrder(np.flatnonzero(index.classes == c), stream_key(SEED, f"constraint {name}"))
            for c, name in enumerate(index.class_names)
        ),
    ]


def test_each_stream_goes_through_all_its_samples_before_it_repeats_one(index: Index) -> None:
    """Over two epochs: of the base, and of each constraint that is open."""
    planner = Planner(orders_of(index), mixture_of, BATCH, slice(None), stream_key(SEED, "allocation"))
    planner.start(0, np.zeros(len(SIZES) + 1, dtype=np.int64))
    planner.steer(0, LATER)
    times = {0: np.zeros(index.count, int), 2: np.zeros(index.count, int), 4: np.zeros(index.count, int)}
    for _, plan in zip(range(2 * index.count // BATCH), planner, strict=False):
        for stream in np.unique(plan.streams).tolist():
            np.add.at(times[stream], plan.rows[plan.streams == stream], 1)
            mine = times[stream][slice(None) if stream == 0 else index.classes == stream - 1]
            assert mine.max() - mine.min() <= 1
            assert mine.sum() == times[stream].sum()


def synthetic(shard_sizes: np.ndarray, classes: np.ndarray, order: ReadOrder) -> Index:
    """An index without tars."""
    n = int(shard_sizes.sum())
    return Index(
        root=Path("nowhere"),
        split="train",
        shape=(1, 1, 1),
        dtype="uint8",
        class_names=[str(c) for c in range(int(classes.max()) + 1)],
        shards=[ShardInfo(f"train/{i:06d}.tar", int(count), 0, "") for i, count in enumerate(shard_sizes)],
        shard=np.repeat(np.arange(len(shard_sizes)), shard_sizes),
        offset=np.zeros(n, np.int64),
        size=np.ones(n, np.int64),
        classes=classes,
        ext=np.zeros(n, np.int32),
        extensions=["png"],
        crc=np.full(n, -1),
        order=order,
    )


@pytest.mark.parametrize("pure", [True, False], ids=["class-pure shards", "mixed shards"])
def test_ten_batches_hold_a_thousand_classes_in_their_shares(pure: bool) -> None:
    """Base and one constraint: every window of ten batches, across the ends of epochs, to the error of rounding."""
    rng = np.random.default_rng(0)
    K, B = 1000, 256
    sizes = rng.integers(1, 60, K)
    classes = np.repeat(np.arange(K), sizes)
    if pure:
        shard_sizes = sizes
    else:
        classes = rng.permutation(classes)
        shard_sizes = np.full(7, len(classes) // 7) + (np.arange(7) < len(classes) % 7)
    assert is_mixed(np.repeat(np.arange(len(shard_sizes)), shard_sizes), classes) != pure
    index = synthetic(shard_sizes, classes, "scattered" if pure else "stratified")
    subset = np.flatnonzero(classes == 7)
    orders: list[Order] = [base_order(index, 1), SubsetOrder(subset, 2)]
    planner = Planner(orders, lambda lambdas: Draws(lambdas, np.ones(len(lambdas)), np.ones(K)), B, slice(None), 3)
    shares = np.array([0.9, 0.1])
    planner.start(0, np.zeros(2, dtype=np.int64))
    planner.steer(0, shares)
    per_batch = np.array(
        [np.bincount(classes[plan.rows], minlength=K) for _, plan in zip(range(300), planner, strict=False)]
    )
    windows = np.cumsum(per_batch, axis=0)
    windows = windows[10:] - windows[:-10]
    expected = 10 * B * (shares[0] * sizes / sizes.sum() + shares[1] * (np.arange(K) == 7))
    # Two ends of a window, and at most one border of passes within it, round by a sample each.
    assert np.abs(windows - expected).max() < 4


@settings(max_examples=10)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.integers(1, 8),
    st.integers(0, 2**63),
    st.sampled_from([1, 3, None]),
    st.integers(0, 3),
)
def test_a_stratified_pass_visits_each_row_once(
    counts: list[int], classes: int, key: int, block: int | None, first_pass: int
) -> None:
    size = sum(counts)
    labels = np.arange(size) % classes
    order, again = (StratifiedOrder(np.array(counts), labels, key, block) for _ in range(2))
    for number in (first_pass, first_pass + 1):
        rows = order.rows(number * size, size)
        assert sorted(rows.tolist()) == list(range(size))
        place = number * size + size // 2
        assert again.rows(place, 1)[0] == rows[size // 2]


def test_stratified_passes_have_orders_of_their_own() -> None:
    order = StratifiedOrder(np.full(20, 50), np.arange(1000) % 7, 1)
    passes = [order.rows(number * 1000, 1000) for number in range(3)]
    assert max((passes[i] == passes[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))) < 0.02


def test_each_rank_reads_few_shards_of_a_block() -> None:
    """16 shards, 8 ranks, batches of 512: a rank's slice lies in about two shards of sixteen."""
    rng = np.random.default_rng(0)
    index = synthetic(np.full(32, 640), rng.integers(0, 10, 32 * 640), "stratified")
    touched = []
    for rank in range(8):
        here = slice(rank * 64, (rank + 1) * 64)
        planner = Planner([base_order(index, 1)], mixture_of, 512, here, 3)
        planner.start(0, np.zeros(1, dtype=np.int64))
        planner.steer(0, np.zeros(0))
        rows = np.concatenate([plan.rows for _, plan in zip(range(20), planner, strict=False)])
        touched.append(len(set(index.shard[rows].tolist())))
    assert max(touched) <= 5, touched


def test_an_empty_stream_is_never_drawn(written: Index) -> None:
    config = DataConfig(shards=str(written.root))
    rows = {"none": np.zeros(0, np.int64), "few": np.flatnonzero(written.classes == 1)}
    arguments: dict[str, Any] = {"lambdas": np.array([0.0, 0.5]), "batch_size": BATCH, "seed": SEED}
    stream = MixtureStream(config, written, rows, np.zeros(written.count, np.int64), mixture_of, **arguments)
    drawn = torch.cat([next(stream).streams for _ in range(5)])
    assert set(drawn.tolist()) == {0, 2}


@pytest.mark.parametrize("order", ORDERS)
def test_the_end_of_a_long_epoch_is_found_at_once(order: ReadOrder) -> None:
    """A million samples: nothing of what is skipped is read, and what follows is what an uninterrupted stream gives."""
    n, B = 1_000_000, 1000
    index = synthetic(np.full(100, n // 100), np.random.default_rng(0).integers(0, 1000, n), order)
    whole, resumed = (Planner([base_order(index, 1)], mixture_of, B, slice(None), 3) for _ in range(2))
    for planner in (whole, resumed):
        planner.start(0, np.zeros(1, dtype=np.int64))
        planner.steer(0, np.zeros(0))
    end = n // B
    counters = [plan.counters_after for _, plan in zip(range(end), whole, strict=False)][-1]
    resumed.start(end, counters)
    resumed.steer(end, np.zeros(0))
    for _, plan, expected in zip(range(3), resumed, whole, strict=False):
        np.testing.assert_array_equal(plan.rows, expected.rows)
        np.testing.assert_array_equal(plan.positions, expected.positions)
