"""Samples of a model, as a source of shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cdt.data.sources.source import Source

CLASS = "generated"


def open_generated(
    samples: torch.Tensor, origin: dict[str, Any], *, bounded: bool, splits: np.ndarray | None = None
) -> Source:
    """Samples [N, C, H, W] of the splits [N]; those of images (``bounded``: in [-1, 1]) become uint8 pixels.

    All are of one class.
    """
    images = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8) if bounded else samples
    array = images.numpy()
    return Source(
        class_names=[CLASS],
        keys=[f"sample-{position:09d}" for position in range(len(array))],
        classes=np.zeros(len(array), dtype=np.int64),
        shapes=np.tile(array.shape[1:], (len(array), 1)),
        dtype="uint8" if bounded else "float32",
        read=array.__getitem__,
        origin=origin,
        splits=np.full(len(array), "train") if splits is None else splits,
    )
