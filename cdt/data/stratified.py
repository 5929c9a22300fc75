"""The base stream with its classes spread evenly: any stretch of it holds each class in its share, to about a sample.

For data whose shards hold few classes each, as shards written by others often do, and for thousands of classes.
"""

from __future__ import annotations

import numpy as np

from cdt.data.index import Index
from cdt.data.plan import SAMPLES, SHARDS, Order, ShardOrder, mix, permute

_CLASSES = 3
MIXED = 2.0
"""Shards are mixed whose classes differ from each other's by less than this multiple of what chance would leave."""


def base_order(index: Index, key: int) -> Order:
    """The order in which the index asks to be read."""
    counts = np.array([shard.count for shard in index.shards])
    if index.order == "shuffled":
        return ShardOrder(counts, key)
    return StratifiedOrder(counts, index.classes, key, None if index.order == "scattered" else 16)


class StratifiedOrder(Order):
    """Shards in an order of their own each pass, in blocks; inside a block each class's samples at even distances.

    Sample j of the n of a class in its block stands where ``(j + u) / n`` falls among all of the block's: u in [0, 1)
    is the class's own, j a random order. So a stretch of the block deviates from the block's shares by less than a
    sample per class, and by the rounding of its own two ends. One block is laid out at a time: O(n log n).

    Args:
        classes: of the rows [N], which stand shard by shard.
        block_shards: shards that are read side by side; None: all, so that class-pure shards are mixed as well.
    """

    sorts_batches = True

    def __init__(self, shard_counts: np.ndarray, classes: np.ndarray, key: int, block_shards: int | None = 16) -> None:
        super().__init__()
        counts = np.asarray(shard_counts, dtype=np.int64)
        self._counts = counts[counts > 0]
        self._starts = (np.cumsum(counts) - counts)[counts > 0]
        self._classes, self._key = classes, key
        self._size, self._block = int(counts.sum()), block_shards or max(len(self._counts), 1)
        self._laid_out, self._rows = (-1, -1), np.zeros(0, dtype=np.int64)
        self._pass, self._order, self._ends = -1, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def _at(self, counters: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(counters, self._size)
        rows = np.empty_like(place)
        for this_pass in np.unique(passes).tolist():
            self._begin(this_pass)
            here = np.flatnonzero(passes == this_pass)
            blocks = np.searchsorted(self._ends, place[here], side="right")
            for block in np.unique(blocks).tolist():
                inside = here[blocks == block]
                start = self._ends[block - 1] if block else 0
                rows[inside] = self._rows_of_block(this_pass, block)[place[inside] - start]
        return rows

    def _begin(self, this_pass: int) -> None:
        """The order of the shards and the ends of their blocks, of one pass at a time."""
        if this_pass == self._pass:
            return
        shards = len(self._counts)
        self._order = permute(np.arange(shards), shards, self._key, SHARDS, this_pass)
        firsts = np.arange(0, shards, self._block)
        self._ends = np.cumsum(np.add.reduceat(self._counts[self._order], firsts))
        self._pass = this_pass

    def _rows_of_block(self, this_pass: int, block: int) -> np.ndarray:
        if (this_pass, block) != self._laid_out:
            shards = np.sort(self._order[block * self._block :][: self._block])
            counts = self._counts[shards]
            rows = np.arange(counts.sum()) + np.repeat(self._starts[shards] - (np.cumsum(counts) - counts), counts)
            self._rows = spread(rows, self._classes[rows], mix(self._key, SAMPLES, this_pass))
            self._laid_out = this_pass, block
        return self._rows


def spread(rows: np.ndarray, classes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rows [n] in a random order in which the samples of each class [n] lie at even distances."""
    by_class = np.lexsort((mix(key, rows), classes))
    labels, first, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    number = np.arange(len(rows)) - np.repeat(first, counts)
    offset = (mix(key, _CLASSES, labels) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    place = (number + np.repeat(offset, counts)) / np.repeat(counts, counts)
    return rows[by_class][np.argsort(place, kind="stable")]


def is_mixed(shard: np.ndarray, classes: np.ndarray) -> bool:
    """Whether the shards hold the classes as if samples were dealt to them at random.

    Pearson's chi-squared of the table shard x class over its degrees of freedom, which chance leaves near 1.
    """
    table, sizes, totals = _table(shard, classes)
    freedom = (len(sizes) - 1) * (len(totals) - 1)
    if freedom < 1:
        return True
    (cells, counts), n = table, len(classes)
    expected = sizes[cells // len(totals)] * totals[cells % len(totals)] / n
    statistic = (counts**2 / expected).sum() - n
    return bool(statistic / freedom < MIXED)


def _table(shard: np.ndarray, classes: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """The cells of the table that are not empty with their counts, and the sums over either side."""
    _, row, sizes = np.unique(shard, return_inverse=True, return_counts=True)
    _, column, totals = np.unique(classes, return_inverse=True, return_counts=True)
    return np.unique(row.astype(np.int64) * len(totals) + column, return_counts=True), sizes, totals
