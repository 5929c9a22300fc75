"""Streams with their classes spread evenly: any stretch of one holds each class in its share, to about a sample.

For batches of many classes, and for shards that hold few classes each, as those of others often do.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache

import numpy as np

from cdt.data.index import Index
from cdt.data.plan import SAMPLES, SHARDS, Order, ShardOrder, SubsetOrder, mix, permute

_CLASSES = 3
_STRETCH = 4096
"""Samples that are laid out at once, at least."""


def base_order(index: Index, key: int) -> Order:
    """The order in which the index asks to be read."""
    counts = np.array([shard.count for shard in index.shards])
    if index.order == "shuffled":
        return ShardOrder(counts, key)
    return StratifiedOrder(np.arange(index.count), counts, index.classes, key)


def subset_order(index: Index, rows: np.ndarray, key: int) -> Order:
    """The order of a constraint's samples; those of several classes come in their shares, too."""
    classes = index.classes[rows]
    if index.order == "shuffled" or len(np.unique(classes)) < 2:
        return SubsetOrder(rows, key)
    return StratifiedOrder(rows, np.bincount(index.shard[rows], minlength=len(index.shards)), classes, key)


class StratifiedOrder(Order):
    """The samples of each class at even distances, taken from the shards in an order of their own each pass.

    Sample j of the n of a class stands where ``(j + u) / n`` falls among all of a pass; u in [0, 1) is the class's own.
    So a stretch of the stream, across the ends of passes too, deviates from the classes' shares by less than a sample
    per class and by the rounding of its own two ends. Within a class the shards come in the order of the pass, and
    samples are permuted within blocks of them: where classes are mixed over the shards, reading stays sequential to
    within about a block; where they are not, each class goes through its own shards. A stretch is laid out at a time.

    Args:
        rows: of the index [N], ascending, hence shard by shard.
        shard_counts: how many of them each shard holds.
        classes: of them [N].
    """

    sorts_batches = True

    def __init__(
        self, rows: np.ndarray, shard_counts: np.ndarray, classes: np.ndarray, key: int, block_shards: int = 16
    ) -> None:
        super().__init__()
        self._key, self._block, self._shards = key, block_shards, len(shard_counts)
        by_class = np.argsort(classes, kind="stable")
        self._by_class = rows[by_class]
        labels, self._firsts, self._counts = np.unique(classes[by_class], return_index=True, return_counts=True)
        self._phases = (mix(key, _CLASSES, labels) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self._size = len(classes)
        self._stretches = max(1, self._size // max(_STRETCH, 4 * len(labels)))
        # A cell is what one shard holds of one class.
        shard = np.repeat(np.arange(self._shards), shard_counts)[by_class]
        number = np.repeat(np.arange(len(labels)), self._counts) * self._shards + shard
        cells, self._cell_first, self._cell_count = np.unique(number, return_index=True, return_counts=True)
        self._cell_class, self._cell_shard = np.divmod(cells, self._shards)
        self._before = cache(self._count_before)
        self._pass, self._laid_out = -1, (-1, -1)

    def _at(self, counters: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(counters, self._size)
        rows = np.empty_like(place)
        for this_pass in np.unique(passes).tolist():
            here = np.flatnonzero(passes == this_pass)
            while here.size:
                stretch = bisect_right(range(self._stretches), int(place[here[0]]), key=self._before) - 1
                inside = here[place[here] < self._before(stretch + 1)]
                rows[inside] = self._stretch(this_pass, stretch)[place[inside] - self._before(stretch)]
                here = here[len(inside) :]
        return rows

    def _ends(self, stretch: int) -> np.ndarray:
        """How many samples of each class stand before a stretch: [K]."""
        ends = np.ceil(self._counts * (stretch / self._stretches) - self._phases)
        return np.clip(ends, 0, self._counts).astype(np.int64) if stretch < self._stretches else self._counts

    def _count_before(self, stretch: int) -> int:
        return int(self._ends(stretch).sum())

    def _stretch(self, this_pass: int, stretch: int) -> np.ndarray:
        """The rows of a stretch in their order; the last one laid out is kept."""
        if (this_pass, stretch) != self._laid_out:
            first, end = self._ends(stretch), self._ends(stretch + 1)
            label = np.repeat(np.arange(len(first)), end - first)
            number = np.arange(len(label)) - np.repeat(np.cumsum(end - first) - end, end - first)
            place = (number + self._phases[label]) / self._counts[label]
            order = np.argsort(place, kind="stable")
            self._rows = self._row_of(this_pass, (self._firsts[label] + number)[order])
            self._laid_out = this_pass, stretch
        return self._rows

    def _row_of(self, this_pass: int, place: np.ndarray) -> np.ndarray:
        """``place`` counts the samples class by class, and within a class in the order of the pass."""
        if this_pass != self._pass:
            self._begin(this_pass)
        group = np.searchsorted(self._group_ends, place, side="right")
        size = np.diff(self._group_ends, prepend=0)[group]
        start = self._group_ends[group] - size
        place = start + permute(place - start, size, self._key, SAMPLES, this_pass, group)
        cell = np.searchsorted(self._cell_ends, place, side="right")
        left = self._cell_ends[cell] - place
        cell = self._cell_order[cell]
        return self._by_class[self._cell_first[cell] + self._cell_count[cell] - left]

    def _begin(self, this_pass: int) -> None:
        """The cells in the order of the pass; a group is what one block of shards holds of one class."""
        turn = np.argsort(permute(np.arange(self._shards), self._shards, self._key, SHARDS, this_pass))[
            self._cell_shard
        ]
        self._cell_order = np.lexsort((turn, self._cell_class))
        self._cell_ends = np.cumsum(self._cell_count[self._cell_order])
        groups = (self._cell_class * self._shards + turn // self._block)[self._cell_order]
        self._group_ends = self._cell_ends[np.flatnonzero(np.append(groups[1:] != groups[:-1], True))]
        self._pass = this_pass
