"""One image: from the bytes in its shard to the array described by the index, or the reason why it is unusable."""

from __future__ import annotations

import zlib

import numpy as np

from cdt.data.format.damage import BadDataError
from cdt.data.format.decode import RAW, decode
from cdt.data.format.index import Index
from cdt.data.format.pack import resized
from cdt.data.format.picture import MAX_PICTURE_BYTES, ShapeError, reason


def check_size(size: int) -> None:
    """Raises BadDataError for an image above the limit."""
    if size > MAX_PICTURE_BYTES:
        raise BadDataError("too large", f"{size} bytes; the limit is {MAX_PICTURE_BYTES}")


def check_crc(promised: int, payload: bytes | memoryview) -> None:
    """Raises BadDataError if the bytes are not those that were indexed; a negative number means no checksum."""
    if 0 <= promised != zlib.crc32(payload):
        raise BadDataError("wrong checksum", f"the image's CRC-32 is not {promised:08x}, as the index says")


def image_of(index: Index, row: int, payload: bytes) -> np.ndarray:
    """The image [C, H, W] of a row from its bytes. Raises BadDataError."""
    ext = index.extensions[int(index.ext[row])]
    try:
        if ext == RAW:
            image = np.frombuffer(payload, index.dtype).reshape(index.shape)
        else:
            size = None if index.resize else index.shape[1:]
            image = decode(payload, ext, size, upright=index.part_of(row).upright)
        if image.dtype == np.uint8 and len(image) == 1 and (index.shape[0] == 3 or index.resize):
            image = np.broadcast_to(image, (index.shape[0], *image.shape[1:]))
        if index.resize and image.dtype == np.uint8:
            image = resized(image, index.shape[1])
    except ShapeError as error:
        raise BadDataError("wrong shape or type", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever decoding raises is one bad sample
        raise BadDataError("damaged image", reason(error)) from error
    if image.shape != index.shape or image.dtype != index.dtype:
        found = f"{image.dtype} of shape {image.shape}, expected {index.dtype} of {index.shape}"
        raise BadDataError("wrong shape or type", found)
    check_finite(image)
    return image


def check_finite(image: np.ndarray) -> None:
    """Raises BadDataError for nan and infinite values."""
    if not np.isfinite(image).all():
        raise BadDataError("not finite", "the image has values that are not finite")
