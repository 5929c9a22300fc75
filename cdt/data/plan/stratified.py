"""Streams with evenly spread classes: any section of one has each class in its share, to within about a sample.

For batches of many classes, and for shards with few classes each, as existing shards often are.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np

from cdt.data.format.index import Index
from cdt.data.plan.order import SAMPLES, SHARDS, Order, ShardOrder, SubsetOrder, mix, permute

_CLASSES = 3
_STRETCH = 4096
"""The least number of samples that are laid out at once."""


def base_order(index: Index, key: int) -> Order:
    """The order stated in the index."""
    counts = np.array([shard.count for shard in index.shards])
    if index.order == "shuffled":
        return ShardOrder(counts, key)
    return StratifiedOrder(np.arange(index.count), counts, index.classes, key)


def subset_order(index: Index, rows: np.ndarray, key: int) -> Order:
    """The order of a constraint's samples; several classes come in their shares, too."""
    classes = index.classes[rows]
    if index.order == "shuffled" or len(np.unique(classes)) < 2:
        return SubsetOrder(rows, key)
    return StratifiedOrder(rows, np.bincount(index.shard[rows], minlength=len(index.shards)), classes, key)


class StratifiedOrder(Order):
    """The samples of each class at even distances, taken from the shards in another order each pass.

    Sample j of the n of a class stands where ``(j + u) / n`` falls among all of a pass; u in [0, 1) is the class's own.
    So a stretch of the stream, across the ends of passes too, deviates from the classes' shares by less than a sample
    per class and by the rounding of its own two ends. Within a class the shards come in the order of the pass, and
    samples are permuted within blocks of them: where classes are mixed over the shards, reading stays sequential to
    within about a block; where they are not, each class goes through its own shards. A stretch is laid out at a time.

    Args:
        rows: of the index [N], ascending, so shard by shard.
        shard_counts: how many of them each shard holds.
        classes: of them [N].
    """

    sorts_batches = True

    def __init__(
        self, rows: np.ndarray, shard_counts: np.ndarray, classes: np.ndarray, key: int, block_shards: int = 16
    ) -> None:
        super().__init__()
        shard_counts = shard_counts[shard_counts > 0]
        self._key, self._block, self._shards = key, block_shards, len(shard_counts)
        by_class = np.argsort(classes, kind="stable")
        self._by_class = rows[by_class]
        labels, self._firsts, self._counts = np.unique(classes[by_class], return_index=True, return_counts=True)
        self._phases = (mix(key, _CLASSES, labels) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self._size = len(classes)
        self._stretches = max(1, self._size // max(_STRETCH, 4 * len(labels)))
        shard = np.repeat(np.arange(self._shards), shard_counts)[by_class]
        number = np.repeat(np.arange(len(labels)), self._counts) * self._shards + shard
        cells, first, count = np.unique(number, return_index=True, return_counts=True)
        self._cells = _Cells(*np.divmod(cells, self._shards), first, count)
        self._before = cache(self._count_before)
        self._laid_out, self._standing = -1, np.zeros(0, dtype=np.int64)
        self._turns: _Turns | None = None

    def _at(self, counters: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(counters, self._size)
        rows = np.empty_like(place)
        together = max(1, _STRETCH // self._size)
        for first in np.unique(passes // together).tolist():
            here = np.flatnonzero(passes // together == first)
            turns = self._turns_of(first * together, together)
            while here.size:
                stretch = bisect_right(range(self._stretches), int(place[here[0]]), key=self._before) - 1
                inside = here[(place[here] >= self._before(stretch)) & (place[here] < self._before(stretch + 1))]
                standing = self._layout(stretch)[place[inside] - self._before(stretch)]
                rows[inside] = self._by_class[turns.places(passes[inside], standing)]
                here = np.setdiff1d(here, inside, assume_unique=True)
        return rows

    def _ends(self, stretch: int) -> np.ndarray:
        """How many samples of each class come before a stretch: [K]."""
        ends = np.ceil(self._counts * (stretch / self._stretches) - self._phases)
        return np.clip(ends, 0, self._counts).astype(np.int64) if stretch < self._stretches else self._counts

    def _count_before(self, stretch: int) -> int:
        return int(self._ends(stretch).sum())

    def _layout(self, stretch: int) -> np.ndarray:
        """The sample at each place in a stretch of any pass, numbered class by class; the last layout is kept."""
        if stretch != self._laid_out:
            first, end = self._ends(stretch), self._ends(stretch + 1)
            label = np.repeat(np.arange(len(first)), end - first)
            number = np.arange(len(label)) - np.repeat(np.cumsum(end - first) - end, end - first)
            place = (number + self._phases[label]) / self._counts[label]
            self._standing = (self._firsts[label] + number)[np.argsort(place, kind="stable")]
            self._laid_out = stretch
        return self._standing

    def _turns_of(self, first_pass: int, passes: int) -> _Turns:
        if self._turns is None or self._turns.first_pass != first_pass:
            self._turns = _Turns(self._cells, self._shards, self._block, self._key, first_pass, passes)
        return self._turns


@dataclass(frozen=True)
class _Cells:
    """The samples of each class in each shard [c]: class, shard, number of the first sample class by class, count."""

    label: np.ndarray
    shard: np.ndarray
    first: np.ndarray
    count: np.ndarray


class _Turns:
    """The order of the samples of each class in some consecutive passes; all arrays are [passes, c].

    A group is the samples of one class in one block of shards; they are permuted.
    """

    def __init__(self, cells: _Cells, shards: int, block: int, key: int, first_pass: int, passes: int) -> None:
        self.first_pass, self._key, self._size = first_pass, key, int(cells.count.sum())
        numbers = np.repeat(np.arange(first_pass, first_pass + passes), shards)
        shard_order = permute(np.tile(np.arange(shards), passes), shards, key, SHARDS, numbers).reshape(passes, shards)
        turn = np.argsort(shard_order, axis=1)[:, cells.shard]
        order = np.argsort(cells.label * shards + turn, axis=1)
        count = cells.count[order]
        # Cumulative over the passes, so that one search serves all of them.
        self._ends = np.cumsum(count, axis=1) + self._size * np.arange(passes)[:, None]
        group = np.take_along_axis(cells.label * shards + turn // block, order, axis=1)
        begins = np.diff(group, axis=1, prepend=-1) != 0
        place = np.arange(group.shape[1])
        opening = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        after = np.where(np.roll(begins, -1, axis=1) | (place == place[-1]), place, place[-1])
        closing = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
        self._start = np.take_along_axis(self._ends - count, opening, axis=1)
        self._length = np.take_along_axis(self._ends, closing, axis=1) - self._start
        self._group = np.cumsum(begins, axis=1) - 1
        self._last = cells.first[order] + count

    def places(self, passes: np.ndarray, standing: np.ndarray) -> np.ndarray:
        """The samples, by numbers class by class, that ``standing`` [n] means in ``passes`` [n]."""
        place = (passes - self.first_pass) * self._size + standing
        cell = self._cell(place)
        start, length = self._start.flat[cell], self._length.flat[cell]
        place = start + permute(place - start, length, self._key, SAMPLES, passes, self._group.flat[cell])
        cell = self._cell(place)
        return self._last.flat[cell] - (self._ends.flat[cell] - place)

    def _cell(self, place: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends.ravel(), place, side="right")
