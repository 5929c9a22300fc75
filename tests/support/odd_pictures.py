"""Pictures as cameras, scanners and old programs write them; each with what it shows, or why it is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
"""[H, W, C]; 4 high and 6 wide, so that a turned one is noticed."""
HALF = np.where(np.arange(6) < 3, 0, 255).astype(np.uint8) * np.ones((4, 1), np.uint8)
"""Transparent on the left, opaque on the right."""


class Odd(NamedTuple):
    payload: bytes
    shows: np.ndarray | None = None
    """[H, W] grey or [H, W, 3]."""
    refused: str | None = None
    """What the message says, instead."""
    in_shards: bool = True
    """Whether the format is one that shards may hold."""
    tolerance: int = 0
    """Grey levels by which a lossy format may differ."""


def encoded(image: Image.Image | np.ndarray, name: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, name, **options)
    return buffer.getvalue()


def png(depth: int, kind: int, rows: bytes, *, extra: bytes = b"", late: bytes = b"") -> bytes:
    """A PNG of 6 x 4 pixels, of any bit depth and colour type (PNG specification, section 11.2.1)."""
    header = struct.pack(">IIBBBBB", 6, 4, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def rows_of(array: np.ndarray) -> bytes:
    """Scan lines without a filter."""
    return b"".join(b"\0" + row.tobytes() for row in array)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores that was held so. EXIF 2.32, section 4.6.4: where row 0 and column 0 are."""
    flipped = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = upright.swapaxes(0, 1)
    flipped |= {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}
    return np.ascontiguousarray(flipped.get(orientation, upright))


def on_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha if picture.ndim == 2 else alpha[..., None]
    return np.where(alpha == 0, 255, picture).astype(np.uint8)


def with_alpha(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    image.putalpha(Image.fromarray(HALF))
    return image


def palette() -> Image.Image:
    image = Image.new("P", (6, 4))
    image.putpalette([value for colour in range(4) for value in (colour * 60, 255 - colour * 60, 7)])
    image.putdata([(x + y) % 4 for y in range(4) for x in range(6)])
    return image


SMALL = (np.arange(24).reshape(4, 6) % 4).astype(np.uint8)
TWO_BITS = np.packbits(np.unpackbits(SMALL[..., None], axis=2)[..., 6:].reshape(4, 12), axis=1)
PALETTE = np.asarray(palette().convert("RGB"))
FLOATS = GREY.astype(np.float32) / 255
WIDE = GREY.astype(np.uint16) * 257
EXIF_6 = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def tiff(array: np.ndarray, bits: int) -> bytes:
    """An uncompressed TIFF of colours with ``bits`` per channel: Pillow reads, but does not write those of 16."""
    height, width, channels = array.shape
    content, entries = array.tobytes(), 9
    bits_at = 8 + 2 + entries * 12 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits_at), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, bits_at + 2 * channels), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(content))]
    fields = b"".join(struct.pack("<HHI4s", *tag[:3], struct.pack("<I", tag[3])) for tag in tags)
    directory = struct.pack("<H", entries) + fields + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack(f"<{channels}H", *[bits] * channels) + content


def pages(*pictures: np.ndarray) -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.fromarray(picture) for picture in pictures]}


def tiff_tags(orientation: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    return tags


DEEP = "more than 8 bits per channel"
SEVERAL = "several frames or pages"
PICTURES = {
    "grey": Odd(encoded(GREY), GREY),
    "colour": Odd(encoded(RGB), RGB),
    "1 bit": Odd(encoded(Image.fromarray(GREY > 100)), np.where(GREY > 100, 255, 0).astype(np.uint8)),
    "2 bits of grey": Odd(png(2, 0, rows_of(TWO_BITS)), SMALL * 85),
    "4 bits of grey": Odd(png(4, 0, rows_of(SMALL[:, ::2] << 4 | SMALL[:, 1::2])), SMALL * 17),
    "16 bits of grey": Odd(encoded(WIDE), refused=DEEP),
    "16 bits of grey and alpha": Odd(png(16, 4, rows_of(np.stack([WIDE, WIDE], -1).astype(">u2"))), refused=DEEP),
    "16 bits of colour": Odd(png(16, 2, rows_of((RGB.astype(np.uint16) * 257).astype(">u2"))), refused=DEEP),
    "16 bits of colour and alpha": Odd(
        png(16, 6, rows_of((np.concatenate([RGB, GREY[..., None]], -1).astype(np.uint16) * 257).astype(">u2"))),
        refused=DEEP,
    ),
    "16 bits of grey as TIFF": Odd(encoded(WIDE, "tiff"), refused=DEEP, in_shards=False),
    "16 bits of colour as TIFF": Odd(tiff(RGB.astype("<u2") * 257, 16), refused=DEEP, in_shards=False),
    "8 bits of colour as TIFF": Odd(tiff(RGB, 8), RGB, in_shards=False),
    "32 bits of whole numbers": Odd(encoded(GREY.astype(np.int32) * 1000, "tiff"), refused=DEEP, in_shards=False),
    "floats": Odd(encoded(FLOATS, "tiff"), refused=DEEP, in_shards=False),
    "grey and alpha": Odd(encoded(with_alpha(GREY)), on_white(GREY, HALF)),
    "colour and alpha": Odd(encoded(with_alpha(RGB)), on_white(RGB, HALF)),
    "colour and alpha as WebP": Odd(encoded(with_alpha(RGB), "webp", lossless=True), on_white(RGB, HALF)),
    "half transparent": Odd(
        encoded(Image.new("RGBA", (6, 4), (0, 100, 200, 128))), np.full((4, 6, 3), (127, 177, 227), np.uint8)
    ),
    "a transparent grey": Odd(encoded(GREY, transparency=50), np.where(GREY == 50, 255, GREY).astype(np.uint8)),
    "a transparent colour": Odd(
        encoded(RGB, transparency=tuple(RGB[0, 0].tolist())),
        np.where((RGB[0, 0] == RGB).all(-1, keepdims=True), 255, RGB).astype(np.uint8),
    ),
    "a transparent grey of 2 bits": Odd(
        png(2, 0, rows_of(TWO_BITS), extra=chunk(b"tRNS", b"\0\1")),
        np.where(SMALL == 1, 255, SMALL * 85).astype(np.uint8),
    ),
    "a transparent grey of 4 bits": Odd(
        png(4, 0, rows_of(SMALL[:, ::2] << 4 | SMALL[:, 1::2]), extra=chunk(b"tRNS", b"\0\2")),
        np.where(SMALL == 2, 255, SMALL * 17).astype(np.uint8),
    ),
    "palette": Odd(encoded(palette()), PALETTE),
    "palette with a transparent entry": Odd(
        encoded(palette(), transparency=2), on_white(PALETTE, np.where(np.asarray(palette()) == 2, 0, 255))
    ),
    "CMYK": Odd(
        encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "jpeg", quality=100),
        np.full((4, 6, 3), (255, 0, 0), np.uint8),
        tolerance=3,
    ),
    "CMYK as TIFF": Odd(
        encoded(Image.new("CMYK", (6, 4), (255, 0, 0, 0)), "tiff"),
        np.full((4, 6, 3), (0, 255, 255), np.uint8),
        in_shards=False,
    ),
    "YCbCr as TIFF": Odd(
        encoded(Image.new("RGB", (6, 4), (200, 30, 90)).convert("YCbCr"), "tiff"),
        np.full((4, 6, 3), (200, 30, 90), np.uint8),
        in_shards=False,
        tolerance=2,
    ),
    "Lab": Odd(encoded(Image.new("LAB", (6, 4)), "tiff"), refused="mode LAB", in_shards=False),
    "BMP": Odd(encoded(RGB, "bmp"), RGB, in_shards=False),
    "GIF": Odd(encoded(GREY, "gif"), refused="it is no or a damaged PNG"),
    "pages of a TIFF": Odd(encoded(RGB, "tiff", **pages(RGB[::-1])), refused=SEVERAL, in_shards=False),
    "animated PNG": Odd(encoded(RGB, "png", **pages(RGB[::-1].copy())), refused=SEVERAL),
    "animated WebP": Odd(encoded(RGB, "webp", **pages(RGB[::-1].copy())), refused=SEVERAL),
    "a preview beside a JPEG": Odd(
        encoded(RGB, "mpo", quality=100, subsampling=0, **pages(RGB[::-1].copy())), RGB, tolerance=12
    ),
    "an orientation behind the pixels": Odd(
        png(8, 0, rows_of(as_stored(GREY.T, 6)), late=chunk(b"eXIf", EXIF_6)), np.ascontiguousarray(GREY.T)
    ),
    "pixels of one colour behind a wrong checksum": Odd(
        encoded(GREY)[:45] + bytes([encoded(GREY)[45] ^ 1]) + encoded(GREY)[46:],
        refused="the chunk at byte 33 is damaged",
    ),
    "the first half of a PNG": Odd(encoded(RGB)[:-30], refused="ends early|truncated|is damaged"),
    "no picture": Odd(b"MZ no picture", refused="it is no or a damaged PNG"),
    "nothing": Odd(b"", refused="damaged|0 bytes"),
}
for orientation in range(1, 9):
    for shown in (GREY, RGB):
        kind = "grey" if shown.ndim == 2 else "colour"
        stored = as_stored(shown, orientation)
        PICTURES[f"PNG of {kind}, orientation {orientation}"] = Odd(encoded(stored, exif=exif(orientation)), shown)
    stored = as_stored(RGB, orientation)
    PICTURES |= {
        f"WebP, orientation {orientation}": Odd(encoded(stored, "webp", lossless=True, exif=exif(orientation)), RGB),
        f"JPEG, orientation {orientation}": Odd(
            encoded(stored, "jpeg", quality=100, subsampling=0, exif=exif(orientation)), RGB, tolerance=12
        ),
        f"TIFF, orientation {orientation}": Odd(
            encoded(stored, "tiff", tiffinfo=tiff_tags(orientation)), RGB, in_shards=False
        ),
    }
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}</rdf:Description></rdf:RDF></x:xmpmeta>'
)
for words in ('="6">', "='6'>", "\n=\n'6'\n>", ">6</tiff:Orientation>", "> 6 </tiff:Orientation>"):
    xmp = XMP.format(f"{'><' if words[0] == '>' else ''}tiff:Orientation{words}")
    written = chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp.encode())
    stored = as_stored(RGB, 6)
    options = {"quality": 100, "subsampling": 0, "xmp": xmp.encode()}
    PICTURES |= {
        f"PNG, XMP {words!r}": Odd(encoded(stored)[:33] + written + encoded(stored)[33:], RGB),
        f"JPEG, XMP {words!r}": Odd(encoded(stored, "jpeg", **options), RGB, tolerance=12),
        f"WebP, XMP {words!r}": Odd(encoded(stored, "webp", lossless=True, xmp=xmp.encode()), RGB),
    }
PICTURES["an orientation that does not exist"] = Odd(encoded(RGB, exif=exif(77)), RGB)
