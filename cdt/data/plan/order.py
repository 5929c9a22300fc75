"""The order of samples: pure integer functions of (seed, stream, counter). No files, no ranks, no state.

A stream is an infinite sequence of rows of the index. Any section of it is computed without the previous ones, so
seeking costs nothing. Every pass over a stream visits each of its rows once, each pass in another order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cache

import numpy as np

SHARDS, SAMPLES = 1, 2  # uses of a key, so that shard orders and sample orders do not repeat each other


def stream_key(seed: int, name: str) -> int:
    """A 64-bit key per stream name: adding a constraint does not change the order of the other streams."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(*words: int | np.ndarray) -> np.ndarray:
    """Hashes words (broadcast together) to 64 bits: splitmix64's finaliser, chained (Steele et al., OOPSLA 2014)."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for word in words:
            state = state ^ np.asarray(word).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = (state ^ (state >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(state)


def permute(position: np.ndarray, size: int | np.ndarray, *key: int | np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of [0, size) at ``position``; size and key may differ per element.

    A Feistel network on the next power of two, walked until the value falls below ``size`` (Black & Rogaway, "Ciphers
    with arbitrary finite domains", 2002). O(1) memory, and exact on every machine, unlike a library's shuffle.
    """
    position, size, salt = np.broadcast_arrays(
        np.asarray(position, dtype=np.int64), np.asarray(size, dtype=np.int64), mix(*key)
    )
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.int64)
    round_keys = [mix(salt, number) for number in range(4)]
    value = position.copy()
    walking = np.arange(value.size)
    while walking.size:
        value[walking] = _feistel(value[walking], bits[walking], [keys[walking] for keys in round_keys])
        walking = walking[value[walking] >= size[walking]]
    return value


def _feistel(value: np.ndarray, bits: np.ndarray, round_keys: list[np.ndarray]) -> np.ndarray:
    low_bits = bits >> 1
    masks = (np.int64(1) << (bits - low_bits)) - 1, (np.int64(1) << low_bits) - 1
    halves = [value >> low_bits, value & masks[1]]
    for number, key in enumerate(round_keys):
        source, target = halves[1 - number % 2], number % 2
        halves[target] = halves[target] ^ (mix(source, key).astype(np.int64) & masks[target])
    return (halves[0] << low_bits) | halves[1]


class Order(ABC):
    """An infinite sequence of rows, addressed by counter. Computed in chunks: numpy is slow on few numbers."""

    sorts_batches = False
    """Whether the rows of a batch are sorted by shard, so that each rank reads few shards."""
    _CHUNK = 4096

    def __init__(self) -> None:
        self._chunk_number, self._chunk_rows = -1, np.zeros(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> np.ndarray:
        """The rows of the index at the counters ``start, ..., start + count - 1``: [count], int64."""
        numbers = range(start // self._CHUNK, (start + count - 1) // self._CHUNK + 1)
        rows = np.concatenate([self._chunk(number) for number in numbers])
        return rows[start % self._CHUNK :][:count]

    def _chunk(self, number: int) -> np.ndarray:
        if number != self._chunk_number:
            first = number * self._CHUNK
            self._chunk_rows = self._at(np.arange(first, first + self._CHUNK))
            self._chunk_number = number
        return self._chunk_rows

    @abstractmethod
    def _at(self, counters: np.ndarray) -> np.ndarray: ...


class SubsetOrder(Order):
    """The stream of a subset of the rows: a permutation of them per pass."""

    def __init__(self, rows: np.ndarray, key: int) -> None:
        super().__init__()
        self._rows, self._key = np.asarray(rows, dtype=np.int64), key

    def _at(self, counters: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(counters, len(self._rows))
        return self._rows[permute(place, len(self._rows), self._key, SAMPLES, passes)]


class ShardOrder(Order):
    """The base stream: shards in another order each pass, samples permuted within blocks of shards.

    Reading stays sequential to within a block. The rows of one shard are consecutive in the index.
    """

    def __init__(self, shard_counts: np.ndarray, key: int, block_shards: int = 16) -> None:
        super().__init__()
        counts = np.asarray(shard_counts, dtype=np.int64)
        self._counts = counts[counts > 0]
        self._starts = (np.cumsum(counts) - counts)[counts > 0]
        self._size, self._key, self._block = int(counts.sum()), key, block_shards
        nothing = np.zeros(0, dtype=np.int64)
        self._pass, self._tables = -1, (nothing, nothing, nothing)

    def _at(self, counters: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(counters, self._size)
        rows = np.empty_like(place)
        for this_pass in np.unique(passes):
            chosen = passes == this_pass
            rows[chosen] = self._rows_of_pass(int(this_pass), place[chosen])
        return rows

    def _rows_of_pass(self, this_pass: int, place: np.ndarray) -> np.ndarray:
        order, ends, block_ends = self._layout(this_pass)
        block = np.searchsorted(block_ends, place, side="right")
        block_start = np.concatenate([[0], block_ends])[block]
        size = block_ends[block] - block_start
        place = block_start + permute(place - block_start, size, self._key, SAMPLES, this_pass, block)
        slot = np.searchsorted(ends, place, side="right")
        within = place - (ends[slot] - self._counts[order[slot]])
        return self._starts[order[slot]] + within

    def _layout(self, this_pass: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard order, cumulative counts in that order, and the ends of the blocks; kept for one pass at a time."""
        if this_pass != self._pass:
            shards = len(self._counts)
            order = permute(np.arange(shards), shards, self._key, SHARDS, this_pass)
            ends = np.cumsum(self._counts[order])
            last_of_block = np.minimum(np.arange(self._block, shards + self._block, self._block), shards) - 1
            self._pass, self._tables = this_pass, (order, ends, ends[last_of_block])
        return self._tables


def allocate(probabilities: np.ndarray, batch: int, batch_size: int, key: int) -> np.ndarray:
    """The stream of each position of a batch [B] by systematic allocation, in order of the streams.

    The points ``(j + U_b) / B`` are spread over the streams' probabilities [m + 1]: each stream gets ``B p`` positions,
    rounded up or down. The offsets U_b follow a golden-ratio sequence, so consecutive batches round differently and
    the counts over many batches stay as close (Cochran, "Sampling techniques", chapter 8).
    """
    offset = (_first_offset(key) + batch * 0x9E3779B97F4A7C15) % 2**64 / 2**64
    points = (np.arange(batch_size) + offset) / batch_size
    ends = np.cumsum(probabilities)
    return np.minimum(np.searchsorted(ends / ends[-1], points, side="right"), len(ends) - 1)


@cache
def _first_offset(key: int) -> int:
    return int(mix(key))
