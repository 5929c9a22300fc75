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

from cdt.data.config import DataConfig
from cdt.data.format.header import ReadOrder
from cdt.data.format.index import Index, ShardInfo
from cdt.data.plan.order import Order, SubsetOrder, stream_key
from cdt.data.plan.planner import Planner
from cdt.data.plan.stratified import StratifiedOrder, base_order, subset_order
from cdt.data.sources import Source
from cdt.data.stream import MixtureStream
from cdt.data.write.shard import shard
from cdt.dual import Draws

SEED, BATCH = 5, 64
SIZES = [1, 2, 5, 40, 400, 2000]
START, LATER = np.array([0.1, 0.2, 0.0, 0.0, 0.1, 0.0]), np.array([0.0, 0.3, 0.0, 0.5, 0.0, 0.0])
ORDERS: list[ReadOrder] = ["shuffled", "stratified"]


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


@pytest.fixture(scope="module", params=ORDERS)
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


def windows_of_ten(index: Index, shares: np.ndarray, batch_size: int, first: int, count: int) -> np.ndarray:
    """Class counts of every ten consecutive batches out of ``count``; the second stream is class 7."""
    K = len(index.class_names)
    orders: list[Order] = [base_order(index, 1), SubsetOrder(np.flatnonzero(index.classes == 7), 2)]

    def mixture(lambdas: np.ndarray) -> Draws:
        return Draws(lambdas, np.ones(len(lambdas)), np.ones(K))

    planner = Planner(orders, mixture, batch_size, slice(None), 3)
    planner.start(first, np.rint(first * batch_size * shares).astype(np.int64))
    planner.steer(first, shares)
    plans = (plan for _, plan in zip(range(count), planner, strict=False))
    sums = np.cumsum([np.bincount(index.classes[plan.rows], minlength=K) for plan in plans], axis=0)
    return sums[10:] - sums[:-10]


SHARES = np.array([0.9, 0.1])


def check_windows(index: Index, batch_size: int, first: int, count: int) -> None:
    """A sample of rounding by each of two ends, and by the two of the constraint's stream."""
    K = len(index.class_names)
    expected = 10 * batch_size * (SHARES[0] * index.class_counts / index.count + SHARES[1] * (np.arange(K) == 7))
    deviation = np.abs(windows_of_ten(index, SHARES, batch_size, first, count) - expected)
    assert deviation.max() < 4
    assert deviation.mean() < 1


@pytest.mark.parametrize("kind", ["class-pure", "mixed", "sorted", "one"])
def test_ten_batches_hold_a_thousand_classes_in_their_shares(kind: str) -> None:
    """Base and one constraint: every window of ten batches, across the ends of blocks and epochs."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, 1000)
    classes = np.repeat(np.arange(1000), sizes)
    shard_sizes = sizes
    if kind == "mixed":
        classes = rng.permutation(classes)
    if kind in ("mixed", "sorted"):
        shard_sizes = np.full(100, len(classes) // 100) + (np.arange(100) < len(classes) % 100)
    if kind == "one":
        shard_sizes = np.array([len(classes)])
    check_windows(synthetic(shard_sizes, classes, "stratified"), 256, 0, 300)


def test_ten_batches_of_shards_by_cdt_shard(tmp_path: Path) -> None:
    """Many blocks of shards, ten classes of very different sizes; over five epochs."""
    sizes = np.array([900, 500, 250, 150, 90, 50, 30, 20, 9, 1])
    shard(numbered(np.repeat(np.arange(10), sizes)), tmp_path / "out", shard_mb=0.0307)
    index = Index.load(tmp_path / "out")
    assert index.order == "stratified"
    assert len(index.shards) > 16 * 5
    check_windows(index, 50, 0, 5 * index.count // 50)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 60), st.integers(0, 2**63))
def test_any_stretch_holds_the_classes_in_their_shares(sizes: list[int], length: int, key: int) -> None:
    counts = np.array(sizes)
    N, K = counts.sum(), len(counts)
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(K), counts))
    order = StratifiedOrder(np.arange(N), np.bincount(np.arange(N) % 7), classes, key, block_shards=2)
    drawn = classes[order.rows(3 * int(N) - 50, 200 + length)]
    for start in range(0, 200, 20):
        found = np.bincount(drawn[start : start + length], minlength=K)
        # Which stretch of (0, 1) so many samples fill is known to the rounding of all classes, a sample each at most.
        assert (np.abs(found - length * counts / N) <= 1 + K * counts / N).all()


@settings(max_examples=10)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.integers(1, 8),
    st.integers(0, 2**63),
    st.sampled_from([1, 3, 16]),
    st.integers(0, 3),
)
def test_a_stratified_pass_visits_each_row_once(
    counts: list[int], classes: int, key: int, block: int, first_pass: int
) -> None:
    size = sum(counts)
    labels = np.arange(size) % classes
    order, again = (StratifiedOrder(np.arange(size), np.array(counts), labels, key, block) for _ in range(2))
    for number in (first_pass, first_pass + 1):
        rows = order.rows(number * size, size)
        assert sorted(rows.tolist()) == list(range(size))
        place = number * size + size // 2
        assert again.rows(place, 1)[0] == rows[size // 2]


def test_a_constraint_on_two_samples_far_apart_repeats_them_by_turns() -> None:
    """Thousands of passes at once, over shards of which hardly one holds any."""
    classes = np.zeros(20_000, int)
    classes[[3, 19_000]] = 1, 2
    index = synthetic(np.ones(20_000, int), classes, "stratified")
    rows = subset_order(index, np.array([3, 19_000]), 1).rows(1_000_000, 5000).reshape(-1, 2)
    assert (np.sort(rows) == [3, 19_000]).all()


def test_a_long_pass_visits_each_row_once() -> None:
    """Of many stretches, also where there are more classes than samples in most of them."""
    rng = np.random.default_rng(0)
    for classes in (np.sort(rng.integers(0, 3000, 30_000)), rng.integers(0, 3, 30_000)):
        order = StratifiedOrder(np.arange(30_000), np.full(100, 300), classes, 5)
        assert sorted(order.rows(30_000, 30_000).tolist()) == list(range(30_000))


@pytest.mark.parametrize("sizes", [[100, 100], [300, 20, 80, 1], [5] * 40])
@pytest.mark.parametrize("sorted_by_class", [True, False])
def test_a_group_s_stream_holds_its_classes_in_their_shares_and_visits_each_row_once(
    sizes: list[int], sorted_by_class: bool
) -> None:
    """Of a data set in which every second class is in the group, over two passes."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(2 * len(sizes)), np.repeat(sizes, 2))
    if not sorted_by_class:
        classes = rng.permutation(classes)
    index = synthetic(np.full(16, len(classes) // 16) + (np.arange(16) < len(classes) % 16), classes, "stratified")
    rows = np.flatnonzero(classes % 2 == 1)
    order = subset_order(index, rows, 3)
    for first in (0, len(rows)):
        assert sorted(order.rows(first, len(rows)).tolist()) == rows.tolist()
    drawn = classes[order.rows(0, 2 * len(rows))] // 2
    for first in range(0, len(rows), 7):
        for length in (10, 64, len(rows)):
            found = np.bincount(drawn[first : first + length], minlength=len(sizes))
            shares = np.array(sizes) / len(rows)
            assert (np.abs(found - length * shares) <= 1 + len(sizes) * shares).all()


def test_mixed_shards_are_read_block_after_block() -> None:
    """A tenth of a pass over 200 shards lies in about 20 of them; over class-pure shards, in few of each class."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, 200 * 500)
    for kind, most in ((classes, 50), (np.sort(classes), 10 * 16)):
        order = StratifiedOrder(np.arange(len(kind)), np.full(200, 500), kind, 1, 16 if kind is classes else 2)
        rows = order.rows(50_000, 10_000)
        assert len(np.unique(rows // 500)) <= most


def test_stratified_passes_have_orders_of_their_own() -> None:
    order = StratifiedOrder(np.arange(1000), np.full(20, 50), np.arange(1000) % 7, 1)
    passes = [order.rows(number * 1000, 1000) for number in range(3)]
    assert max((passes[i] == passes[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))) < 0.02


def test_each_rank_reads_few_shards_of_a_block() -> None:
    """Blocks of 16 shards, 8 ranks, batches of 512: a rank's slice lies in about two shards of sixteen."""
    rng = np.random.default_rng(0)
    index = synthetic(np.full(32, 640), rng.integers(0, 10, 32 * 640), "stratified")
    touched = []
    for rank in range(8):
        here = slice(rank * 64, (rank + 1) * 64)
        planner = Planner([base_order(index, 1)], mixture_of, 512, here, 3)
        planner.start(0, np.zeros(1, dtype=np.int64))
        planner.steer(0, np.zeros(0))
        rows = np.concatenate([plan.rows for _, plan in zip(range(16), planner, strict=False)])
        touched.append(len(set(index.shard[rows].tolist())))
    assert np.mean(touched) <= 5, touched


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
