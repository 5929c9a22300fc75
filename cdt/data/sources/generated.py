"""Samples of a model, as a source of shards."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdt.data.sources.source import Source

CLASS = "generated"


def open_generated(images: np.ndarray, splits: np.ndarray, origin: dict[str, Any]) -> Source:
    """Images [N, C, H, W], uint8 or float32, of the splits [N]; all are of one class."""
    return Source(
        class_names=[CLASS],
        keys=[f"sample-{position:09d}" for position in range(len(images))],
        classes=np.zeros(len(images), dtype=np.int64),
        shapes=np.tile(images.shape[1:], (len(images), 1)),
        dtype="uint8" if images.dtype == np.uint8 else "float32",
        read=images.__getitem__,
        origin=origin,
        splits=splits,
    )
