from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.plan.order import Order, SubsetOrder, allocate, stream_key
from cdt.data.plan.stratified import base_order
from cdt.data.read.reader import ImageReader, normalise
from cdt.data.sources import Source
from cdt.data.stream import Batch, MixtureStream, StreamState
from cdt.data.write.shard import shard
from cdt.dual import Draws

SEED, BATCH, LAG = 3, 12, 3
COUNTS = (60, 30, 11)
START = np.array([0.5, 0.2])
LATER = np.array([0.0, 3.0])


def write_shards(root: Path, classes: np.ndarray) -> Index:
    """Different images of three classes, in shards of about ten."""
    images = np.random.default_rng(0).integers(0, 256, (len(classes), 1, 4, 4), dtype=np.uint8)
    source = Source(
        class_names=["many", "some", "few"],
        keys=[f"k{number}" for number in range(len(classes))],
        classes=classes,
        shapes=np.tile(images.shape[1:], (len(classes), 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(len(classes), "train"),
    )
    shard(source, root, shard_mb=0.025)
    return Index.load(root)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", np.repeat(np.arange(3), COUNTS))


def mixture_of(lambdas: np.ndarray) -> Draws:
    """Streams as the Lagrangian asks, and weights by cell (here: by class) that change with lambda."""
    weights = np.array([1.0, *lambdas])
    return Draws(weights / weights.sum(), np.array([1.0, 0.5, 2.0]), np.array([1.0, 2.0, 4.0]) + lambdas.sum())


def make(
    index: Index,
    *,
    lambdas: np.ndarray = START,
    names: tuple[str, ...] = ("some", "few"),
    lag: int = LAG,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> MixtureStream:
    config = DataConfig(shards=str(index.root), loader_workers=workers, lambda_lag=lag)
    rows = {name: np.flatnonzero(index.classes == index.class_names.index(name)) for name in names}
    cells = index.classes.astype(np.int64)
    return MixtureStream(
        config, index, rows, cells, mixture_of, lambdas=lambdas, batch_size=BATCH, seed=SEED, rank=rank, world=world
    )


TENSORS = ("images", "positions", "streams", "cells", "weights", "rows")


def assert_same(batch: Batch, other: Batch) -> None:
    assert batch.condition is other.condition is None
    for name in TENSORS:
        assert torch.equal(getattr(batch, name), getattr(other, name)), name


def joined(parts: list[Batch]) -> Batch:
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return Batch(**tensors)


def run(streams: list[MixtureStream], first: int, end: int) -> list[Batch]:
    """The global batches from ``first`` to ``end``, put together from all ranks; lambda changes at the fifth."""
    batches = []
    for number in range(first, end):
        if number == 5:
            for stream in streams:
                stream.steer(LATER)
        batches.append(joined([next(stream) for stream in streams]))
    return batches


@pytest.fixture(scope="module")
def reference(index: Index) -> list[Batch]:
    return run([make(index)], 0, 14)


def ranks(index: Index, world: int, **options: Any) -> list[MixtureStream]:
    return [make(index, rank=rank, world=world, **options) for rank in range(world)]


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_the_union_over_ranks_is_the_same_sequence(
    index: Index, reference: list[Batch], world: int, workers: int
) -> None:
    for batch, expected in zip(run(ranks(index, world, workers=workers), 0, 14), reference, strict=True):
        assert_same(batch, expected)


def test_batches_are_what_the_plan_says(index: Index, reference: list[Batch]) -> None:
    """Positions, streams by allocation, each stream by its own counter in the order of its shards; images, weights."""
    orders: list[Order] = [
        base_order(index, stream_key(SEED, "base")),
        *(
            SubsetOrder(np.flatnonzero(index.classes == c), stream_key(SEED, f"constraint {index.class_names[c]}"))
            for c in (1, 2)
        ),
    ]
    images = normalise(ImageReader(index, 512).images(np.arange(index.count)))
    counters = np.zeros(3, dtype=int)
    for number, batch in enumerate(reference):
        mixture = mixture_of(START if number < 5 + LAG else LATER)
        streams = allocate(mixture.probabilities, number, BATCH, stream_key(SEED, "allocation"))
        counts = np.bincount(streams, minlength=3)
        drawn = [
            order.rows(int(start), int(count)) for order, start, count in zip(orders, counters, counts, strict=True)
        ]
        rows = np.concatenate([np.sort(mine) for mine in drawn])
        counters += counts
        assert batch.positions.tolist() == list(range(number * BATCH, (number + 1) * BATCH))
        assert batch.streams.tolist() == streams.tolist()
        assert batch.cells.tolist() == index.classes[rows].tolist()
        np.testing.assert_array_equal(batch.images.numpy(), images[rows])
        weights = mixture.stream_weights[streams]
        weights[streams == 0] *= mixture.base_weights[index.classes[rows]][streams == 0]
        np.testing.assert_array_equal(batch.weights.numpy(), weights.astype(np.float32))
        assert batch.images.dtype == batch.weights.dtype == torch.float32
        assert {batch.positions.dtype, batch.streams.dtype, batch.cells.dtype} == {torch.int64}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("lag", [1, 4, 7])
def test_lambda_acts_exactly_the_lag_later(index: Index, lag: int, workers: int) -> None:
    stream = make(index, lambdas=np.zeros(2), lag=lag, workers=workers)
    acting = []
    for number in range(3 + 2 * lag):
        if number == 2:
            stream.steer(np.array([1e9, 0.0]))
        if number == 3:
            stream.steer(np.array([0.0, 1e9]))
        acting.append(set(next(stream).streams.tolist()))
    assert acting == [{0}] * (2 + lag) + [{1}] + [{2}] * lag


def test_the_first_lambda_can_be_replaced_before_the_first_batch(index: Index) -> None:
    stream = make(index, lambdas=np.zeros(2), lag=1)
    stream.steer(np.array([1e9, 0.0]))
    stream.steer(np.array([0.0, 1e9]))
    assert [set(next(stream).streams.tolist()) for _ in range(2)] == [{0}, {2}]


def test_the_stream_is_the_mixture(index: Index) -> None:
    """f_c = (pi_c + lambda_c) / (1 + Lambda), to the precision of a few passes without replacement."""
    lambdas = np.array([0.3, 0.9])
    stream = make(index, lambdas=lambdas)
    cells = torch.cat([next(stream).cells for _ in range(200)])
    expected = (np.array(COUNTS) / sum(COUNTS) + [0, *lambdas]) / (1 + lambdas.sum())
    np.testing.assert_allclose(np.bincount(cells) / len(cells), expected, atol=0.005)


def through_json(state: StreamState) -> StreamState:
    tree = json.loads(json.dumps(asdict(state)))
    return StreamState(tree["batch"], tree["counters"], [(first, lambdas) for first, lambdas in tree["history"]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("cut", [3, 6, 10], ids=["before steering", "with lambda still to come", "after"])
def test_a_restored_stream_continues_exactly(
    index: Index, reference: list[Batch], cut: int, world: int, workers: int
) -> None:
    interrupted = make(index, workers=workers)
    run([interrupted], 0, cut)
    state = through_json(interrupted.state())
    assert state.batch == cut
    resumed = ranks(index, world, workers=workers, lambdas=np.zeros(2))
    for stream in resumed:
        stream.restore(state)
        assert stream.state() == state
    for batch, expected in zip(run(resumed, cut, 14), reference[cut:], strict=True):
        assert_same(batch, expected)


def test_a_state_taken_right_after_steering_knows_it(index: Index, reference: list[Batch]) -> None:
    interrupted, resumed = make(index), make(index, lambdas=np.zeros(2))
    run([interrupted], 0, 5)
    interrupted.steer(LATER)
    resumed.restore(through_json(interrupted.state()))
    for expected in reference[5:]:
        assert_same(next(resumed), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_running_stream_can_be_set_back(index: Index, reference: list[Batch], workers: int) -> None:
    stream = make(index, workers=workers)
    run([stream], 0, 4)
    state = stream.state()
    run([stream], 4, 9)
    stream.restore(state)
    for batch, expected in zip(run([stream], 4, 9), reference[4:9], strict=True):
        assert_same(batch, expected)


def test_a_fork_keeps_the_base_and_begins_its_own_constraints(index: Index) -> None:
    twin = make(index, lambdas=np.zeros(0), names=())
    before = [next(twin) for _ in range(4)]
    assert len(before) == 4
    fork = make(index, lambdas=np.zeros(2))
    fork.restore(twin.state())
    assert fork.state().counters == {"base": 4 * BATCH, "constraint some": 0, "constraint few": 0}
    for _ in range(LAG):
        batch, expected = next(fork), next(twin)
        assert_same(Batch(**{**vars(batch), "weights": expected.weights}), expected)
    fork.steer(np.array([0.0, 1e9]))
    for _ in range(LAG):
        next(fork)
    few = np.flatnonzero(index.classes == 2)
    rows = SubsetOrder(few, stream_key(SEED, "constraint few")).rows(0, BATCH)
    images = normalise(ImageReader(index, 512).images(np.sort(rows)))
    np.testing.assert_array_equal(next(fork).images.numpy(), images)


def test_another_order_of_constraints_does_not_exchange_their_lambdas(index: Index) -> None:
    origin = make(index, lambdas=np.array([1e9, 0.0]))
    next(origin)
    other = make(index, lambdas=np.zeros(2), names=("few", "some"))
    other.restore(origin.state())
    assert set(next(other).streams.tolist()) == {0}


def test_micro_batches_are_equal_parts_in_order(reference: list[Batch]) -> None:
    parts = reference[0].split(3)
    assert [len(part.images) for part in parts] == [4, 4, 4]
    assert_same(joined(parts), reference[0])
    assert_same(reference[0].to(torch.device("cpu")), reference[0])
