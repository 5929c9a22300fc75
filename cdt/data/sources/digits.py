"""Scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import numpy as np

from cdt.data.sources.source import Source


def open_digits() -> Source:
    """The digits with their 17 levels of grey spread over 0 to 255: [1, 8, 8] uint8, classes "0" to "9"."""
    from sklearn.datasets import load_digits  # imported here, because it takes a second, which only this source needs

    grey, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.rint(grey * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Source(
        class_names=[str(digit) for digit in range(10)],
        keys=[f"digits-{position:06d}" for position in range(len(images))],
        classes=labels,
        shapes=np.tile(images.shape[1:], (len(images), 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "digits"},
        splits=np.full(len(images), "train"),
    )
