"""Scikit-learn's digits as a source."""

from __future__ import annotations

import numpy as np
from sources import check_protocol

from cdt.data.sources import SOURCES


def test_digits() -> None:
    digits = SOURCES["digits"]()
    check_protocol(digits)
    assert len(digits) == 1797
    assert np.bincount(digits.classes).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = np.stack([digits.read(position) for position in range(1797)])
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    assert digits.keys[123] == "digits-000123"
