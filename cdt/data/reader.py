"""Rows of the index to arrays: read from the shard by byte offset, decoded once if the data fit in memory."""

from __future__ import annotations

import zlib
from typing import Protocol

import numpy as np

from cdt.data.bad import BadSample
from cdt.data.decode import RAW, ShapeError, decode
from cdt.data.files import DEFAULT_CACHE_GB, open_files
from cdt.data.index import Index
from cdt.data.kinds import BadDataError
from cdt.data.pack import resized
from cdt.data.plan import mix
from cdt.errors import RunError

MAX_BYTES = 1 << 26
"""No encoded image is larger."""
ATTEMPTS = 32
"""Samples that are tried in place of a bad one."""


class Images(Protocol):
    """Whatever gives images by row."""

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] to images [n, C, H, W] of the index's dtype. Raises RunError."""
        ...


class ImageReader:
    """Images of an index, by row; all of them stay decoded in memory when they fit in ``cache_mb``."""

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
            raise RunError(f"{told(self._index, sample)}. `cdt verify {root}` checks all shards")
        return images

    def usable(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, BadSample]]:
        """Like ``images``; but where one cannot be used, its place is in the second result and its pixels are not
        defined."""
        bad: dict[int, BadSample] = {}
        if self._cache is None:
            images = np.empty((len(rows), *self._index.shape), self._index.dtype)
            for place, row in enumerate(rows.tolist()):
                if isinstance(image := self._image(row), BadSample):
                    bad[place] = image
                else:
                    images[place] = image
            return images, bad
        for row in np.unique(rows[~self._cached[rows]]).tolist():
            if isinstance(image := self._image(row), BadSample):
                bad |= dict.fromkeys(np.flatnonzero(rows == row).tolist(), image)
            else:
                self._cache[row] = image
                self._cached[row] = True
        return self._cache[rows], bad

    def _image(self, row: int) -> np.ndarray | BadSample:
        index = self._index
        try:
            if (size := int(index.size[row])) > MAX_BYTES:
                raise BadDataError("too large", f"{size} bytes; the limit is {MAX_BYTES}")
            payload = self.files.read(int(index.shard[row]), int(index.offset[row]), size)
            if 0 <= (promised := int(index.crc[row])) != zlib.crc32(payload):
                raise BadDataError("wrong checksum", f"the image's CRC-32 is not {promised:08x}, as the index says")
            if index.ext[row] == self._raw:
                return self._checked(np.frombuffer(payload, index.dtype).reshape(index.shape))
            size_now = None if index.resize else index.shape[1:]
            return self._checked(decode(payload, index.extensions[int(index.ext[row])], size_now))
        except BadDataError as error:
            return BadSample(row, error.kind, str(error))
        except ShapeError as error:
            return BadSample(row, "wrong shape or type", str(error))
        except ValueError as error:
            return BadSample(row, "damaged image", str(error))

    def _checked(self, image: np.ndarray) -> np.ndarray:
        index = self._index
        if index.resize and image.dtype == np.uint8:
            image = resized(np.broadcast_to(image, (index.shape[0], *image.shape[1:])), index.shape[1])
        if image.shape != index.shape or image.dtype != index.dtype:
            raise ShapeError(f"{image.dtype} of shape {image.shape}, expected {index.dtype} of {index.shape}")
        if image.dtype != np.uint8 and not np.isfinite(image).all():
            raise BadDataError("not finite", "the image has values that are not finite")
        return image


def told(index: Index, sample: BadSample) -> str:
    """Where a bad sample lies, and why it is one."""
    shard = index.shards[int(index.shard[sample.row])].name
    part = index.part_of(sample.row)
    return f"{part.base or part.root}/{shard}, byte {int(index.offset[sample.row])}: {sample.reason}"


class TolerantReader:
    """Like ``ImageReader``; in place of a sample that cannot be used stands another of its class and cell.

    Which one is a function of the position alone, so that a resumed run, or one on another number of ranks, draws the
    same.
    """

    def __init__(self, reader: ImageReader, index: Index, cells: np.ndarray, key: int) -> None:
        self._reader, self._index, self._cells, self._key = reader, index, cells, key
        self._alike: dict[tuple[int, int], np.ndarray] = {}
        self.files = reader.files
        self.bad: dict[int, BadSample] = {}
        """All that were met, by row."""

    def images(self, rows: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Rows [n] at positions [n] (by default: their own numbers) to images [n, C, H, W]. Raises RunError."""
        return self.read(rows, rows if positions is None else positions)[0]

    def read(self, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, dict[int, BadSample]]:
        """Images [n, C, H, W], and the places at which another sample stands than was asked for."""
        images, bad = self._reader.usable(rows)
        for place, sample in bad.items():
            self.bad[sample.row] = sample
            images[place] = self._substitute(sample, int(positions[place]))
        return images, bad

    def _substitute(self, sample: BadSample, position: int) -> np.ndarray:
        alike = self._rows_like(sample.row)
        for attempt in range(ATTEMPTS):
            row = alike[int(mix(self._key, position, attempt)) % len(alike)]
            images, bad = self._reader.usable(np.array([row]))
            if not bad:
                return images[0]
        name = self._index.class_names[int(self._index.classes[sample.row])]
        root = self._index.part_of(sample.row).root
        raise RunError(
            f"{told(self._index, sample)}; of {len(alike)} samples of class {name}, {ATTEMPTS} were tried in its place "
            f"and none can be used. `cdt verify {root}` checks all shards"
        )

    def _rows_like(self, row: int) -> np.ndarray:
        kind = int(self._index.classes[row]), int(self._cells[row])
        if kind not in self._alike:
            self._alike[kind] = np.flatnonzero((self._index.classes == kind[0]) & (self._cells == kind[1]))
        return self._alike[kind]


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] to float32 [-1, 1]; float32 (latents) as it is."""
    return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images
