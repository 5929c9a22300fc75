"""Images of a split without those that cannot be used: for what looks at data outside of training."""

from __future__ import annotations

import warnings

import numpy as np

from cdt.data.format.index import Index
from cdt.data.read.bad import Ledger
from cdt.data.read.reader import ImageReader
from cdt.errors import DamagedWarning


class UsableImages:
    """Leaves out unusable images, up to the share ``max_bad`` of the split; a DamagedWarning counts and places them.

    ``setting``: what allows that share, for error messages.
    """

    def __init__(self, index: Index, max_bad: float, setting: str) -> None:
        self._reader = ImageReader(index, cache_mb=0)
        self._ledger = Ledger.of(index, 1, max_bad, setting)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows [n], the images [u, C, H, W] that can be used, and their rows [u].

        Raises RunError if more are unusable than allowed.
        """
        images, bad = self._reader.usable(rows)
        self._ledger.add(bad.values())
        self._ledger.check()
        if self._ledger.take_new():
            warnings.warn(f"{self._ledger.summary()}. They are left out", DamagedWarning, stacklevel=2)
        usable = np.ones(len(rows), bool)
        usable[list(bad)] = False
        return images[usable], rows[usable]
