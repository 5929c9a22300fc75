"""The one rule for pictures, whatever way they come in: from the bytes of a file to upright 8-bit pixels.

The format is that of the bytes, not of the name. The picture stands upright as its EXIF data say. What is transparent
becomes white. Palettes, CMYK and YCbCr become RGB; grey stays grey. More than 8 bits per channel and several frames are
refused, as either would change the picture silently.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

SHARD_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are decoded from shards."""
FILE_FORMATS = (*SHARD_FORMATS, "BMP", "TIFF")
"""Formats that are read from files of the user's own."""
MAX_PIXELS = 1 << 26
MAX_PICTURE_BYTES = 1 << 26
"""Limit of the size of an encoded picture."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
ORIENTATION = 0x0112
XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")
BITS_PER_SAMPLE, SAMPLE_FORMAT, STRIP_OFFSETS, ROWS_PER_STRIP, PLANES = 0x0102, 0x0153, 0x0111, 0x0116, 0x011C
METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks of a PNG in which an orientation may be."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation. EXIF 2.32, section 4.6.4."""


class ShapeError(ValueError):
    """A picture of another size or type than expected."""


class PictureFacts(NamedTuple):
    """What a picture's header says of its pixels."""

    shape: tuple[int, int, int]
    """C, H, W; C is 1 (grey) or 3."""
    transparent: bool
    """Whether it may have transparent pixels."""


def picture_facts(file: IO[bytes], formats: Sequence[str] = FILE_FORMATS) -> PictureFacts:
    """What ``read_picture`` will return, without decoding the pixels. Raises ValueError as it does.

    Only the pixels themselves, and the checksums of a PNG, are not checked.
    """
    with _opened(file, formats) as image:
        return _facts(image, image.format == "PNG" and _metadata_behind_pixels(file))


def checked_facts(payload: bytes, formats: Sequence[str] = FILE_FORMATS) -> PictureFacts:
    """As ``picture_facts``, and the checksums of a PNG are checked. Raises ValueError."""
    late = check_chunks(payload)
    with _opened(io.BytesIO(payload), formats) as image:
        return _facts(image, late)


def read_picture(
    payload: bytes,
    formats: Sequence[str] = FILE_FORMATS,
    *,
    size: tuple[int, int] | None = None,
    upright: bool = True,
) -> np.ndarray:
    """The pixels [C, H, W] uint8 of a grey (C = 1) or colour (C = 3) picture; writable.

    ``upright=False`` leaves it as it is stored: indexes of earlier versions were written for that.

    Raises ValueError (a plain sentence): bytes of no or another format, damage, more than ``MAX_PIXELS`` pixels, more
    than 8 bits per channel, several frames; ShapeError if height and width are not ``size`` (before it is decoded).
    """
    file = io.BytesIO(payload)
    with _opened(file, formats) as image:
        late = check_chunks(payload)
        orientation = _orientation(image, late) if upright else 1
        found = _size(image, orientation)
        if size is not None and found != size:
            raise ShapeError(f"{found[0]} x {found[1]} pixels, expected {size[0]} x {size[1]}")
        _scale_transparent_grey(image, file)
        return _pixels(image, orientation)


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_pixels(width: int, height: int) -> None:
    """Raises ValueError if an image of this size is larger than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")


@contextmanager
def _opened(file: IO[bytes], formats: Sequence[str]) -> Iterator[Image.Image]:
    """The picture, if its header promises one that can be used. Raises ValueError, also for what fails within."""
    try:
        with Image.open(file, formats=tuple(formats)) as image:
            check_pixels(image.width, image.height)
            _check_depth(image, file)
            if image.mode not in (*GREY, *COLOUR):
                raise ValueError(f"it has mode {image.mode}; expected grey or colour with 8 bits per channel")
            if _has_more_frames(image):
                raise ValueError("it has several frames or pages; expected one picture")
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no or a damaged {', '.join(formats[:-1])} or {formats[-1]}") from error
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly any error for damaged bytes
        raise ValueError(reason(error)) from error


def _check_depth(image: Image.Image, file: IO[bytes]) -> None:
    """Pillow shows 16 bits of grey as mode I;16, but those of colour as 8 bits."""
    bits = 8
    if image.format == "PNG":
        bits = _png_depth(file)
    elif image.format == "TIFF":
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        bits = max(_values(tags.get(BITS_PER_SAMPLE, 1)))
        if bits <= 8 and set(_values(tags.get(SAMPLE_FORMAT, 1))) != {1}:
            raise ValueError("its values are not unsigned whole numbers of 8 bits; convert it first")
        rows = tags.get(ROWS_PER_STRIP, image.height) or image.height
        planes = len(image.getbands()) if tags.get(PLANES) == 2 else 1
        strips = _values(tags.get(STRIP_OFFSETS, ()))
        if strips and len(strips) < -(-image.height // min(rows, image.height)) * planes:
            raise ValueError("it has fewer strips than its height needs")
    if bits > 8 or image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits per channel; convert it to 8 bits first")


def _values(tag: Any) -> tuple[Any, ...]:
    return tag if isinstance(tag, tuple) else (tag,)


def _has_more_frames(image: Image.Image) -> bool:
    # A phone's JPEG may hold a preview or a depth map beside the picture, as format MPO.
    if image.format == "TIFF":
        return _second_page(image)
    return image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1


def _second_page(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _facts(image: Image.Image, late: bool) -> PictureFacts:
    height, width = _size(image, _orientation(image, late))
    return PictureFacts((1 if image.mode in GREY else 3, height, width), image.has_transparency_data)


def _orientation(image: Image.Image, late: bool) -> int:
    """1 to 8, as in EXIF; 1 is upright, as is every TIFF: Pillow turns those itself. ``late``: see ``check_chunks``."""
    if late:
        image.load()
    if image.format != "TIFF" and {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
        with suppress(Exception):  # as in _opened; viewers pass over damaged EXIF data, too
            return int(image.getexif().get(ORIENTATION) or _xmp_orientation(image))
    return 1


def _xmp_orientation(image: Image.Image) -> int:
    """As XMP has it in any way that XML may be written; Pillow reads it with double quotes and without spaces alone."""
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
    found = XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(found[1]) if found else 1


def _size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Height and width once it is upright."""
    return (image.width, image.height) if 5 <= orientation <= 8 else (image.height, image.width)


def _pixels(image: Image.Image, orientation: int) -> np.ndarray:
    grey, turn = image.mode in GREY, UPRIGHT.get(orientation)
    picture = image if turn is None else image.transpose(turn)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    mode = "L" if grey else "RGB"
    array = np.array(picture if picture.mode == mode else picture.convert(mode))
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _png_depth(file: IO[bytes]) -> int:
    """Bits per channel. PNG specification, section 11.2.1."""
    return int(_at(file, 24, 1)[0])


def _scale_transparent_grey(image: Image.Image, file: IO[bytes]) -> None:
    """Pillow stretches 2 and 4 bits of grey to 8, but not the level that is transparent (its section 11.3.1.1)."""
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.load()
        image.info["transparency"] = image.info["transparency"] * 255 // (2 ** _png_depth(file) - 1)


def check_chunks(payload: bytes) -> bool:
    """Whether a PNG has metadata behind its pixels, which Pillow reads only together with these.

    Raises ValueError if the CRC of a chunk is wrong; Pillow does not check it for pixels. PNG specification (third
    edition), section 5.3. Other formats have no checksums.
    """
    if not payload.startswith(PNG_SIGNATURE):
        return False
    bytes_of = memoryview(payload)  # whose parts are no copies
    place, seen_pixels, late = len(PNG_SIGNATURE), False, False
    while place + 12 <= len(payload):
        end = place + 8 + int.from_bytes(payload[place : place + 4])
        if zlib.crc32(bytes_of[place + 4 : end]) != int.from_bytes(payload[end : end + 4]):
            raise ValueError(f"the chunk at byte {place} is damaged")
        kind = payload[place + 4 : place + 8]
        if kind == b"IEND":
            return late
        seen_pixels = seen_pixels or kind == b"IDAT"
        late = late or (seen_pixels and kind in METADATA)
        place = end + 4
    raise ValueError("it ends early")


def _metadata_behind_pixels(file: IO[bytes]) -> bool:
    """As ``check_chunks``, of a file whose pixels are not read."""
    before, place, seen_pixels = file.tell(), len(PNG_SIGNATURE), False
    try:
        while True:
            file.seek(place)
            start = file.read(8)
            kind = start[4:]
            if len(start) < 8 or kind == b"IEND":
                return False
            seen_pixels = seen_pixels or kind == b"IDAT"
            if seen_pixels and kind in METADATA:
                return True
            place += 12 + int.from_bytes(start[:4])
    finally:
        file.seek(before)


def _at(file: IO[bytes], place: int, count: int) -> bytes:
    """Bytes of the file; its position stays as it was."""
    before = file.tell()
    file.seek(place)
    found = file.read(count)
    file.seek(before)
    return found
