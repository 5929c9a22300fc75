"""From records to the bytes of tars: resizing, lossless encoding, and where in its tar each image lies."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter

from cdt.data.sources import Record

BLOCK, RECORD = 512, 10_240
"""A member of a tar fills whole blocks after one block of header; the tar, with two empty blocks, whole records."""


@dataclass(frozen=True)
class Sample:
    """One sample as it stands in a tar; ``members`` are its files by extension, ``ext`` is that of the image."""

    key: str
    ext: str
    members: dict[str, bytes]
    class_index: int

    @property
    def size(self) -> int:
        """Bytes in the tar."""
        return sum(map(_member_size, self.members.values()))

    @property
    def image_offset(self) -> int:
        """Bytes from the sample's start to the image's first; TarWriter sorts members by extension."""
        return BLOCK + sum(_member_size(payload) for ext, payload in self.members.items() if ext < self.ext)


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
        np.lib.format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    members = {ext: buffer.getvalue(), "cls": str(record.class_index).encode()}
    if record.attributes:
        members["json"] = json.dumps(record.attributes).encode()
    return Sample(record.key, ext, members, record.class_index)


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


def packed(samples: list[Sample]) -> tuple[memoryview, list[int]]:
    """The bytes of a tar, the same for the same samples, and the offset of each sample's image."""
    buffer = io.BytesIO()
    offsets = []
    with TarWriter(buffer, mtime=0) as tar:
        for sample in samples:
            offsets.append(tar.tarstream.offset + sample.image_offset)
            tar.write({"__key__": sample.key, **sample.members})
    return buffer.getbuffer(), offsets


def _member_size(payload: bytes) -> int:
    return BLOCK + math.ceil(len(payload) / BLOCK) * BLOCK


def _tar_size(end: int) -> int:
    return math.ceil((end + 2 * BLOCK) / RECORD) * RECORD
