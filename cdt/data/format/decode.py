"""Decodes the bytes of one shard member to an array. Shards are untrusted: nothing here executes what it reads."""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

PIL_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
EXTENSIONS = (*PIL_FORMATS, "npy")
RAW = "raw"
"""In an index: the bytes of one image in an array of many, with the shape and dtype of the index."""
NPY_DTYPES = ("|u1", "<f4")
MAX_PIXELS = 1 << 26


class ShapeError(ValueError):
    """An image of another size or type than expected."""


def decode(payload: bytes, ext: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """One image [C, H, W]: uint8 from png, jpg and webp (C is 1 or 3), uint8 or float32 from npy (any C); writable.

    Raises ValueError (a plain sentence) for an extension outside the allow-list, bytes that are not an image of that
    format, damaged chunks of a png, more than ``MAX_PIXELS`` pixels or another height and width than ``size`` (before
    they are decoded; ShapeError), and images that are not 8 bits grey or colour.
    """
    if ext == "npy":
        return _decode_npy(payload)
    if ext not in PIL_FORMATS:
        raise ValueError(f"extension {ext!r} is not one of {', '.join(EXTENSIONS)}")
    try:
        with Image.open(io.BytesIO(payload), formats=[PIL_FORMATS[ext]]) as image:
            check_pixels(image.width, image.height)
            if size is not None and (image.height, image.width) != size:
                raise ShapeError(f"{image.height} x {image.width} pixels, expected {size[0]} x {size[1]}")
            if ext == "png":
                check_chunks(payload)
            return pixels(image)
    except ShapeError:
        raise
    except Exception as error:  # PIL's decoders raise nearly any error for damaged bytes
        raise ValueError(f"not a usable {ext} image: {reason(error)}") from error


def check_chunks(payload: bytes) -> None:
    """Raise ValueError if a chunk's CRC is wrong; Pillow does not check it for pixels.

    PNG specification (third edition), section 5.3.
    """
    place = 8
    while place + 12 <= len(payload):
        end = place + 8 + int.from_bytes(payload[place : place + 4])
        if zlib.crc32(payload[place + 4 : end]) != int.from_bytes(payload[end : end + 4]):
            raise ValueError(f"the chunk at byte {place} is damaged")
        if payload[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    raise ValueError("it ends early")


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    if isinstance(error, UnidentifiedImageError):
        return "another or a damaged format"
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError if an image of this size is larger than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")


def pixels(image: Image.Image) -> np.ndarray:
    """The pixels [C, H, W] uint8 of a grey (C = 1) or colour (C = 3) image.

    Raises ValueError for transparency and for more than 8 bits: dropping either would change the picture silently.
    """
    check_mode(image)
    grey = image.mode in ("1", "L")
    array = np.array(image.convert("L" if grey else "RGB"))
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def check_mode(image: Image.Image) -> None:
    """Raise ValueError if ``pixels`` would; reads only the header."""
    if image.has_transparency_data:
        raise ValueError("the image has transparency; expected grey or RGB without alpha")
    if image.mode not in ("1", "L", "RGB", "P", "CMYK", "YCbCr"):
        raise ValueError(f"the image has mode {image.mode}; expected grey or RGB with 8 bits per channel")


def _decode_npy(payload: bytes) -> np.ndarray:
    shape, dtype, start = npy_header(payload)
    return np.frombuffer(payload, dtype, offset=start).reshape(shape).copy()


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
    if len(shape) != 3 or fortran_order:
        raise ValueError(f"the npy array has shape {shape}{' in Fortran order' * fortran_order}; expected [C, H, W]")
    check_pixels(shape[1], shape[2])
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or len(payload) - start != size:
        raise ValueError(f"the npy array of shape {shape} needs {size} bytes and has {len(payload) - start}")
    return shape, dtype, start
