"""Decodes the bytes of one shard member to an array. Shards are untrusted: nothing here executes what it reads."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cdt.data.format.picture import (
    SHARD_FORMATS,
    ShapeError,
    check_pixels,
    checked_facts,
    read_picture,
    reason,
)

PICTURES = ("png", "jpg", "webp")
"""Extensions of pictures; their format is that of their bytes."""
EXTENSIONS = (*PICTURES, "npy")
RAW = "raw"
"""In an index: the bytes of one image in an array of many, with the shape and dtype of the index."""
NPY_DTYPES = ("|u1", "<f4")


def decode(payload: bytes, ext: str, size: tuple[int, int] | None = None, *, upright: bool = True) -> np.ndarray:
    """One image [C, H, W]: uint8 from pictures (as ``read_picture`` reads them), uint8 or float32 from npy (any C).

    It is writable. Raises ValueError (a plain sentence) for an extension outside the allow-list and for what is not a
    usable image; ShapeError for a picture of another height and width than ``size``.
    """
    if ext == "npy":
        shape, dtype, start = npy_header(payload)
        return np.frombuffer(payload, dtype, offset=start).reshape(shape).copy()
    with _named(ext):
        return read_picture(payload, SHARD_FORMATS, size=size, upright=upright)


def image_header(payload: bytes, ext: str) -> tuple[tuple[int, int, int], str, bool]:
    """Shape [C, H, W], dtype, and whether transparency will become white, without the pixels. Raises ValueError."""
    if ext == "npy":
        shape, dtype, _ = npy_header(payload)
        return shape, dtype.name, False
    with _named(ext):
        shape, transparent = checked_facts(payload, SHARD_FORMATS)
        return shape, "uint8", transparent


@contextmanager
def _named(ext: str) -> Iterator[None]:
    """Errors say which member of a sample they are about."""
    if ext not in PICTURES:
        raise ValueError(f"extension {ext!r} is not one of {', '.join(EXTENSIONS)}")
    try:
        yield
    except ShapeError:
        raise
    except ValueError as error:
        raise ValueError(f"not a usable {ext} image: {error}") from error


def npy_header(payload: bytes) -> tuple[tuple[int, int, int], np.dtype, int]:
    """Shape, dtype and first byte of an array [C, H, W] of uint8 or float32. Raises ValueError unless it is one."""
    stream = io.BytesIO(payload)
    try:
        if (version := np.lib.format.read_magic(stream)) != (1, 0):
            raise ValueError(f"format version {version}; expected (1, 0)")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's parser raises nearly any error for damaged headers
        raise ValueError(f"not a usable npy array: {reason(error)}") from error
    if dtype.str not in NPY_DTYPES:
        raise ValueError(f"the npy array holds {dtype}; expected uint8 or little-endian float32")
    if len(shape) != 3 or fortran_order or any(type(side) is not int for side in shape):
        raise ValueError(f"the npy array has shape {shape}{' in Fortran order' * fortran_order}; expected [C, H, W]")
    check_pixels(shape[1], shape[2])
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or len(payload) - start != size:
        raise ValueError(f"the npy array of shape {shape} needs {size} bytes and has {len(payload) - start}")
    return shape, dtype, start
