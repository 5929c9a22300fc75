"""Rows of the index to arrays: read from the shard by byte offset, decoded once if the data fit in memory."""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np

from cdt.data.decode import decode
from cdt.data.index import Index
from cdt.errors import RunError


class ShardFiles:
    """Open shards of one index, the least recently used closed first."""

    def __init__(self, index: Index, max_open: int = 32) -> None:
        self._index, self._max_open = index, max_open
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def payload(self, row: int) -> bytes:
        """The encoded image of a row. Raises OSError when the shard cannot be read, ValueError when it ends early."""
        index = self._index
        size = int(index.size[row])
        payload = os.pread(self._open(int(index.shard[row])), size, int(index.offset[row]))
        if len(payload) != size:
            raise ValueError(f"the shard ends early: {len(payload)} of {size} bytes")
        return payload

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
        else:
            path = self._index.root / self._index.shards[shard].name
            self._descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self._max_open:
                os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors[shard]


class ImageReader:
    """Images of an index, by row; all of them stay decoded in memory when they fit in ``cache_mb``."""

    def __init__(self, index: Index, cache_mb: float) -> None:
        self._index, self._files = index, ShardFiles(index)
        size = index.count * int(np.prod(index.shape)) * np.dtype(index.dtype).itemsize
        self._cache = np.empty((index.count, *index.shape), index.dtype) if size <= cache_mb * 2**20 else None
        self._cached = np.zeros(index.count, dtype=bool)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] to images [n, C, H, W] of the index's dtype. Raises RunError naming shard and offset."""
        if self._cache is None:
            images = np.empty((len(rows), *self._index.shape), self._index.dtype)
            for place, row in enumerate(rows.tolist()):
                images[place] = self._image(row)
            return images
        for row in np.unique(rows[~self._cached[rows]]).tolist():
            self._cache[row] = self._image(row)
            self._cached[row] = True
        return self._cache[rows]

    def _image(self, row: int) -> np.ndarray:
        index = self._index
        try:
            image = decode(self._files.payload(row), index.extensions[int(index.ext[row])])
            if image.shape != index.shape or image.dtype != index.dtype:
                raise ValueError(f"{image.dtype} of shape {image.shape}, expected {index.dtype} of {index.shape}")
        except (OSError, ValueError) as error:
            path = index.root / index.shards[int(index.shard[row])].name
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"{path}, byte {int(index.offset[row])}: {reason}. `cdt verify {index.root}` checks all shards"
            ) from error
        return image


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] to float32 [-1, 1]; float32 (latents) as it is."""
    return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images
