"""MNIST's IDX files (http://yann.lecun.com/exdb/mnist): MNIST, Fashion-MNIST, Kuzushiji-MNIST and similar ones."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from cdt.data.sources.source import Source
from cdt.errors import InputError

PREFIXES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = ("images", 3), ("labels", 1)


def open_idx(directory: str | Path) -> Source:
    """The grey images [1, H, W] uint8 of ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, plain or .gz.

    ``t10k-*``, if it exists, becomes the split "test". Plain files stay on disk until a record is read; .gz files are
    unpacked in memory. Raises InputError for files that are missing, truncated, longer than their header says, not
    IDX, or that do not fit together.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"no such directory: {directory}")
    images, labels = {}, {}
    for split, prefix in PREFIXES.items():
        found = [_find(directory, prefix, *kind) for kind in (IMAGES, LABELS)]
        if split == "test" and found == [None, None]:
            continue
        for path, (name, dimensions) in zip(found, (IMAGES, LABELS), strict=True):
            if path is None:
                looked_for = ", ".join(_names(prefix, name, dimensions))
                raise InputError(f"{directory} has no {split} {name}: looked for {looked_for}")
            (images if dimensions == 3 else labels)[split] = read_idx(path, dimensions)
        if len(images[split]) != len(labels[split]):
            counts = f"{len(images[split])} images and {len(labels[split])} labels"
            raise InputError(f"{directory}: {counts} in the split {split}; expected as many of one as of the other")

    if not any(map(len, images.values())):
        raise InputError(f"the IDX files in {directory} hold no images")

    starts = np.cumsum([0] + [len(part) for part in images.values()])
    parts = list(images.values())

    def read(position: int) -> np.ndarray:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return np.array(parts[part][position - starts[part]])[None]

    classes = np.concatenate(list(labels.values())).astype(np.int32)
    return Source(
        class_names=[str(name) for name in range(classes.max() + 1)],
        keys=[f"idx-{split}-{position:06d}" for split, part in images.items() for position in range(len(part))],
        classes=classes,
        shapes=np.concatenate([np.tile((1, *part.shape[1:]), (len(part), 1)) for part in parts]),
        dtype="uint8",
        read=read,
        origin={"name": "idx", "directory": str(directory)},
        splits=np.repeat(list(images), [len(part) for part in parts]),
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """One IDX file of unsigned bytes: [N] or [N, H, W] uint8, a memory map if the file is not compressed."""
    magic = struct.pack(">I", 0x0800 + dimensions)
    packed = path.suffix == ".gz"
    body = bytearray()
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            if (found := stream.read(4)) != magic:
                expected = f"{magic.hex()}, as files of {dimensions}-dimensional unsigned bytes do"
                raise InputError(f"{path} begins with {found.hex() or 'nothing'} instead of {expected}")
            if len(sides := stream.read(4 * dimensions)) < 4 * dimensions:
                raise InputError(f"{path} is truncated: it ends in its header")
            shape = struct.unpack(f">{dimensions}I", sides)
            size = math.prod(shape)
            # Read in pieces: a damaged header may state a size larger than memory.
            while packed and len(body) <= size and (piece := stream.read(1 << 20)):
                body += piece
            length = len(body) if packed else path.stat().st_size - stream.tell()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if length != size:
        relation = "truncated" if length < size else "longer than it says"
        raise InputError(f"{path} is {relation}: its header promises {' x '.join(map(str, shape))} bytes")
    if packed or size == 0:
        return np.frombuffer(body, np.uint8).reshape(shape)
    return np.memmap(path, np.uint8, mode="r", offset=4 + 4 * dimensions, shape=shape)


def _names(prefix: str, name: str, dimensions: int) -> list[str]:
    plain = [f"{prefix}-{name}{mark}idx{dimensions}-ubyte" for mark in "-."]
    return plain + [f"{file}.gz" for file in plain]


def _find(directory: Path, prefix: str, name: str, dimensions: int) -> Path | None:
    candidates = [directory / file for file in _names(prefix, name, dimensions)]
    return next((path for path in candidates if path.is_file()), None)
