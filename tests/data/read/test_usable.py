"""Images of a split without those that cannot be used: counted, placed, and refused above a share."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tars import sample, write_tar

from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.data.read.usable import UsableImages
from cdt.errors import DamagedWarning, RunError


def with_damage(place: Path, *damaged: int) -> Index:
    """Ten images that show their numbers; the pixels of some are damaged after they were indexed."""
    members = [entry for number in range(10) for entry in sample(f"k{number}", value=number)]
    tar = write_tar(place / "a.tar", members)
    index_shards([str(tar)], place / "out")
    index = Index.load(place / "out")
    content = bytearray(tar.read_bytes())
    for row in damaged:
        content[int(index.offset[row]) + 45] ^= 0xFF
    tar.write_bytes(content)
    return index


def test_unusable_images_are_left_out_and_told_once(tmp_path: Path) -> None:
    index = with_damage(tmp_path, 3, 7)
    usable = UsableImages(index, 0.2, "--max-bad")
    with pytest.warns(
        DamagedWarning, match=r"^1 samples are unusable \(wrong checksum 1\).*They are left out$"
    ) as told:
        images, rows = usable.read(np.arange(5))
    assert rows.tolist() == [0, 1, 2, 4]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 4]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable.read(np.array([5, 3, 6]))[1].tolist() == [5, 6]
    with pytest.warns(DamagedWarning, match=r"^2 samples are unusable \(wrong checksum 2\)"):
        assert usable.read(np.arange(10))[1].tolist() == [0, 1, 2, 4, 5, 6, 8, 9]


def test_more_than_the_share_are_refused(tmp_path: Path) -> None:
    usable = UsableImages(with_damage(tmp_path, 3, 7), 0.1, "--max-bad")
    with pytest.raises(
        RunError, match=r"2 samples are unusable .* Allowed are 1 of 10 \(--max-bad 0\.1\); `cdt verify"
    ):
        usable.read(np.arange(10))
