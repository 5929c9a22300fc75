"""Reads rows of the index as arrays: from the shard by byte offset, decoded once if the data fit in memory."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from cdt.data.config import DEFAULT_CACHE_GB
from cdt.data.format.damage import BadDataError
from cdt.data.format.decode import RAW
from cdt.data.format.image import check_crc, check_finite, check_size, image_of
from cdt.data.format.index import Index
from cdt.data.plan.order import mix
from cdt.data.read.bad import BadSample
from cdt.data.read.files import open_files
from cdt.data.read.remote import place_of
from cdt.errors import RunError

ATTEMPTS = 32
"""How many replacements of a bad sample are tried."""


class Images(Protocol):
    """Whatever gives images by row."""

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] to images [n, C, H, W] of the index's dtype. Raises RunError."""
        ...


class ImageReader:
    """Images of an index, by row; all are kept decoded in memory if they fit in ``cache_mb``."""

    def __init__(self, index: Index, cache_mb: float, shard_cache_gb: float = DEFAULT_CACHE_GB) -> None:
        self._index, self.files = index, open_files(index, shard_cache_gb)
        size = index.count * int(np.prod(index.shape)) * np.dtype(index.dtype).itemsize
        self._cache = np.empty((index.count, *index.shape), index.dtype) if size <= cache_mb * 2**20 else None
        self._cached = np.zeros(index.count, dtype=bool)
        self._raw = index.extensions.index(RAW) if RAW in index.extensions else -1

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] to images [n, C, H, W] of the index's dtype. Raises RunError naming shard and offset."""
        images, bad = self.usable(rows)
        if bad:
            _, sample = min(bad.items())
            root = self._index.part_of(sample.row).root
            raise RunError(f"{described(self._index, sample)}. `cdt verify {root}` checks all shards")
        return images

    def usable(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, BadSample]]:
        """Like ``images``, but unusable ones are in the second result, by their place; their pixels are undefined."""
        if self._cache is None:
            images = np.empty((len(rows), *self._index.shape), self._index.dtype)
            return images, self._read(rows, images)
        if self._cached[rows].all():
            return self._cache[rows], {}
        new = np.unique(rows[~self._cached[rows]])
        fresh = np.empty((len(new), *self._index.shape), self._index.dtype)
        unusable = {sample.row: sample for sample in self._read(new, fresh).values()}
        good = ~np.isin(new, list(unusable))
        self._cache[new[good]], self._cached[new[good]] = fresh[good], True
        places = np.flatnonzero(~self._cached[rows]).tolist()
        return self._cache[rows], {place: unusable[int(rows[place])] for place in places}

    def _read(self, rows: np.ndarray, images: np.ndarray) -> dict[int, BadSample]:
        """Reads rows [n] into images [n, C, H, W]; returns the unusable ones by their place."""
        index, bad = self._index, {}
        raw = index.ext[rows] == self._raw
        self._read_raw(np.flatnonzero(raw), rows, images, bad)
        for place in np.flatnonzero(~raw).tolist():
            row = int(rows[place])
            try:
                check_size(size := int(index.size[row]))
                payload = self.files.read(int(index.shard[row]), int(index.offset[row]), size)
                check_crc(int(index.crc[row]), payload)
                images[place] = image_of(index, row, payload)
            except BadDataError as error:
                bad[place] = BadSample(row, error.kind, str(error))
        return bad

    def _read_raw(self, places: np.ndarray, rows: np.ndarray, images: np.ndarray, bad: dict[int, BadSample]) -> None:
        """Reads images of bundles, which need no decoding: each goes from its file to its place without a copy."""
        index, chosen = self._index, rows[places]
        columns = (places, chosen, index.shard[chosen], index.offset[chosen], index.crc[chosen])
        buffer = memoryview(images.reshape(-1).view(np.uint8).data)
        size = images[:1].nbytes
        for place, row, shard, offset, crc in zip(*(column.tolist() for column in columns), strict=True):
            target = buffer[place * size : (place + 1) * size]
            try:
                check_size(size)
                self.files.read_into(target, shard, offset)
                check_crc(crc, target)
                if index.dtype != "uint8":
                    check_finite(images[place])
            except BadDataError as error:
                bad[place] = BadSample(row, error.kind, str(error))


def described(index: Index, sample: BadSample) -> str:
    """The place of a bad sample, and why it is unusable."""
    shard = index.shards[int(index.shard[sample.row])].name
    part = index.part_of(sample.row)
    place = f"{part.root}/{shard}" if part.base is None else place_of(part.base, shard)
    return f"{place}, byte {int(index.offset[sample.row])}: {sample.reason}"


class Found(NamedTuple):
    """The requested samples, or their replacements."""

    images: np.ndarray
    """[n, C, H, W]"""
    rows: np.ndarray
    """Rows of the samples that were read: [n]."""
    bad: dict[int, BadSample]
    """The unusable samples that were requested, by the places of their replacements."""


class TolerantReader:
    """Like ``ImageReader``, but an unusable sample is replaced by another sample of its class and cell.

    The replacement depends only on the position, so that a resumed run, or one on another number of ranks, draws the
    same.
    """

    def __init__(self, reader: ImageReader, index: Index, cells: np.ndarray, key: int) -> None:
        self._reader, self._index, self._cells, self._key = reader, index, cells, key
        self._alike: dict[tuple[int, int], np.ndarray] = {}
        self.files = reader.files
        self.bad: dict[int, BadSample] = {}
        """All bad samples that were found, by row."""

    def images(self, rows: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Rows [n] at positions [n] (by default: their own numbers) to images [n, C, H, W]. Raises RunError."""
        return self.read(rows, rows if positions is None else positions).images

    def read(self, rows: np.ndarray, positions: np.ndarray) -> Found:
        """The samples at rows [n] and positions [n]. Raises RunError."""
        images, bad = self._reader.usable(rows)
        found = rows.copy()
        for place, sample in bad.items():
            self.bad[sample.row] = sample
            found[place], images[place] = self._substitute(sample, int(positions[place]))
        return Found(images, found, bad)

    def _substitute(self, sample: BadSample, position: int) -> tuple[int, np.ndarray]:
        alike = self._rows_like(sample.row)
        for attempt in range(ATTEMPTS):
            row = alike[int(mix(self._key, position, attempt)) % len(alike)]
            images, bad = self._reader.usable(np.array([row]))
            if not bad:
                return int(row), images[0]
        name = self._index.class_names[int(self._index.classes[sample.row])]
        root = self._index.part_of(sample.row).root
        raise RunError(
            f"{described(self._index, sample)}; of {len(alike)} samples of class {name}, {ATTEMPTS} were tried as "
            f"replacements and none is usable. `cdt verify {root}` checks all shards"
        )

    def _rows_like(self, row: int) -> np.ndarray:
        kind = int(self._index.classes[row]), int(self._cells[row])
        if kind not in self._alike:
            self._alike[kind] = np.flatnonzero((self._index.classes == kind[0]) & (self._cells == kind[1]))
        return self._alike[kind]


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] to float32 [-1, 1]; float32 (latents) as it is."""
    if images.dtype != np.uint8:
        return images
    values = images.astype(np.float32)
    values /= 127.5
    values -= 1
    return values
