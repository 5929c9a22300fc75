"""The plan of each batch, in integers: which rows, of which streams, with which weights. No files, no images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from cdt.data.plan.order import Order, allocate


class Mixture(Protocol):
    """The proportions and weights of the data for one lambda."""

    @property
    def probabilities(self) -> np.ndarray:
        """The probabilities of the base and of each constraint's stream: [m + 1]."""
        ...

    @property
    def stream_weights(self) -> np.ndarray:
        """The weight of a draw's loss, by stream: [m + 1]."""
        ...

    @property
    def base_weights(self) -> np.ndarray:
        """An additional weight of a base draw's loss, by cell: [K]."""
        ...

    @property
    def penalties(self) -> np.ndarray | None:
        """Weights of penalties in the loss: [P]; None: there are none."""
        ...


@dataclass(frozen=True)
class PlannedBatch:
    """The integers of one rank's slice, and the streams' counters after the whole batch."""

    positions: np.ndarray
    rows: np.ndarray
    streams: np.ndarray
    mixture: Mixture
    counters_after: np.ndarray


class Planner(Sampler[PlannedBatch]):
    """Yields, batch by batch, the rows that this rank reads; it runs ahead of training by the loader's depth."""

    def __init__(
        self, orders: list[Order], mixture_of: Callable[[np.ndarray], Mixture], batch_size: int, local: slice, key: int
    ) -> None:
        self._orders, self._mixture_of, self._batch_size = orders, mixture_of, batch_size
        self._local, self._key = local, key
        self._batch, self._counters = 0, np.zeros(len(orders), dtype=np.int64)
        self._schedule: list[tuple[int, Mixture]] = []

    def start(self, batch: int, counters: np.ndarray) -> None:
        self._batch, self._counters, self._schedule = batch, counters, []

    def steer(self, first_batch: int, lambdas: np.ndarray) -> None:
        """Draw by these multipliers from ``first_batch`` on, which must not be planned yet."""
        if first_batch < self._batch:
            raise AssertionError(f"batch {first_batch} is already planned")
        self._schedule.append((first_batch, self._mixture_of(lambdas)))

    def __iter__(self) -> Iterator[PlannedBatch]:
        while True:
            yield self._plan()

    def _plan(self) -> PlannedBatch:
        while len(self._schedule) > 1 and self._schedule[1][0] <= self._batch:
            self._schedule.pop(0)
        mixture = self._schedule[0][1]
        streams = allocate(mixture.probabilities, self._batch, self._batch_size, self._key)
        counts = np.bincount(streams, minlength=len(self._orders))
        rows = [self._rows(self._orders[i], int(self._counters[i]), int(counts[i])) for i in np.flatnonzero(counts)]
        positions = np.arange(self._batch * self._batch_size, (self._batch + 1) * self._batch_size)
        self._batch, self._counters = self._batch + 1, self._counters + counts
        here = self._local
        return PlannedBatch(positions[here], np.concatenate(rows)[here], streams[here], mixture, self._counters.copy())

    def skip(self) -> np.ndarray:
        """Skips a batch; returns the streams' counters after it."""
        return self._plan().counters_after

    def ahead(self, batches: int) -> np.ndarray:
        """The rows that this rank will read from the base stream in the next ``batches``; plans nothing."""
        twin = copy(self)
        twin._schedule = list(self._schedule)
        plans = (twin._plan() for _ in range(batches))
        return np.concatenate([plan.rows[plan.streams == 0] for plan in plans])

    def _rows(self, order: Order, start: int, count: int) -> np.ndarray:
        rows = order.rows(start, count)
        return np.sort(rows) if self._orders[0].sorts_batches else rows
