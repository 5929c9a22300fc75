"""From records to the bytes of tars: resizing, lossless encoding, and each image's offset in its tar."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter

from cdt.data.format.decode import RAW
from cdt.data.sources import Record

BLOCK, RECORD = 512, 10_240
"""A member of a tar fills whole blocks after one block of header; the tar, with two empty blocks, whole records."""


IMAGES, CLASSES = "images.npy", "classes.npy"
"""Members of a bundle; its json has the keys, and the attributes by name."""
PACK_BELOW = 4096
"""Bytes of pixels below which images are bundled unless asked otherwise."""
BUNDLE_BYTES = 1 << 18


class Placed(NamedTuple):
    """An image in its tar, in the order of the index's columns."""

    key: str
    ext: str
    offset: int
    size: int
    class_index: int
    crc: int


@dataclass(frozen=True)
class Sample:
    """One sample as stored in a tar; ``members`` are its files by extension, ``ext`` is that of the image."""

    key: str
    ext: str
    members: dict[str, bytes]
    class_index: int

    @property
    def size(self) -> int:
        """Bytes in the tar."""
        return sum(map(_member_size, self.members.values()))

    @property
    def count(self) -> int:
        """How many images it holds."""
        return 1

    def images(self, start: int) -> Iterator[Placed]:
        """The images of a sample that begins at byte ``start`` of its tar."""
        image = self.members[self.ext]
        yield Placed(
            self.key, self.ext, start + self.offset_of(self.ext), len(image), self.class_index, zlib.crc32(image)
        )

    def offset_of(self, member: str) -> int:
        """Bytes from the sample's start to a member's first; TarWriter sorts members by extension."""
        return BLOCK + sum(_member_size(payload) for ext, payload in self.members.items() if ext < member)


@dataclass(frozen=True)
class Bundle(Sample):
    """Many small images as one array [n, C, H, W]: a tar header for each would be larger than the image."""

    records: tuple[Record, ...]

    @property
    def count(self) -> int:
        return len(self.records)

    def images(self, start: int) -> Iterator[Placed]:
        size = self.records[0].image.nbytes
        first = start + self.offset_of(IMAGES) + len(self.members[IMAGES]) - size * len(self.records)
        for number, record in enumerate(self.records):
            crc = zlib.crc32(record.image.tobytes())
            yield Placed(record.key, RAW, first + number * size, size, record.class_index, crc)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of an image [C, H, W], resampled to [C, side, side] with Pillow's anti-aliasing Lanczos."""
    height, width = image.shape[1:]
    square = min(height, width)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    channels = [Image.fromarray(channel).resize((side, side), Image.Resampling.LANCZOS, box) for channel in image]
    return np.stack([np.asarray(channel) for channel in channels])


def encoded(record: Record) -> Sample:
    """Members of one record: png (uint8, 1 or 3 channels) or npy (all else), cls, and json where it has attributes."""
    buffer = io.BytesIO()
    image = record.image
    if image.dtype == np.uint8 and len(image) in (1, 3):
        ext = "png"
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    else:
        ext = "npy"
        buffer.write(_npy(image))
    members = {ext: buffer.getvalue(), "cls": str(record.class_index).encode()}
    if record.attributes:
        members["json"] = json.dumps(record.attributes).encode()
    return Sample(record.key, ext, members, record.class_index)


def bundled(records: Iterable[Record], name: str) -> Iterator[Bundle]:
    """Records in their order, many to one member; ``name`` is unique to the data set's part."""
    group: list[Record] = []
    number = 0
    for record in records:
        group.append(record)
        if len(group) * record.image.nbytes >= BUNDLE_BYTES:
            yield _bundle(f"{name}-{number:06d}", tuple(group))
            group, number = [], number + 1
    if group:
        yield _bundle(f"{name}-{number:06d}", tuple(group))


def _bundle(key: str, records: tuple[Record, ...]) -> Bundle:
    attributes = {name: [record.attributes[name] for record in records] for name in records[0].attributes}
    about = {"keys": [record.key for record in records], "attributes": attributes}
    members = {
        CLASSES: _npy(np.array([record.class_index for record in records], "<i4")),
        IMAGES: _npy(np.stack([record.image for record in records])),
        "json": json.dumps(about).encode(),
    }
    return Bundle(key, IMAGES, members, 0, records)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def by_size(samples: Iterable[Sample], limit: int) -> Iterator[list[Sample]]:
    """Samples in their order, grouped so that no tar exceeds ``limit`` bytes unless it holds a single sample."""
    group: list[Sample] = []
    end = 0
    for sample in samples:
        if group and _tar_size(end + sample.size) > limit:
            yield group
            group, end = [], 0
        group.append(sample)
        end += sample.size
    if group:
        yield group


def packed(samples: list[Sample]) -> tuple[memoryview, list[Placed]]:
    """The bytes of a tar, the same for the same samples, and the place of each image."""
    buffer = io.BytesIO()
    images: list[Placed] = []
    with TarWriter(buffer, mtime=0) as tar:
        for sample in samples:
            images += sample.images(tar.tarstream.offset)
            tar.write({"__key__": sample.key, **sample.members})
    return buffer.getbuffer(), images


def _member_size(payload: bytes) -> int:
    return BLOCK + math.ceil(len(payload) / BLOCK) * BLOCK


def _tar_size(end: int) -> int:
    return math.ceil((end + 2 * BLOCK) / RECORD) * RECORD
