"""Shards as others write them: one class in each, by webdataset itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tars import png
from webdataset.writer import TarWriter

from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader


def pure_shards(root: Path, classes: int = 6, each: int = 20) -> list[str]:
    """One class in each, written by webdataset itself; the grey of an image is its number."""
    root.mkdir(parents=True, exist_ok=True)
    for label in range(classes):
        with TarWriter(str(root / f"x-{label:03d}.tar")) as tar:
            for number in range(each):
                value = label * each + number
                record = {"age": value / 7, "male": value % 2, "name": f"n{label}", "caption": "?"}
                payload = {"png": png(value), "cls": str(label).encode(), "json": json.dumps(record).encode()}
                tar.write({"__key__": f"some/folder/{value:04d}", **payload})
    return [str(root / f"x-{{000..{classes - 1:03d}}}.tar")]


def images_by_key(index: Index) -> dict[str, int]:
    images = ImageReader(index, 0).images(np.arange(index.count))
    return dict(zip(index.keys(), images[:, 0, 0, 0].tolist(), strict=True))
