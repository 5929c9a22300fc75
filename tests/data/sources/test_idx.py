"""MNIST's file format."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import check_protocol

from cdt.data.sources.idx import open_idx
from cdt.errors import InputError


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5), dtype=np.uint8)


LABELS = np.array([0, 1, 2, 3, 2, 1, 0], np.uint8)


def write_idx(directory: Path, prefix: str = "train", mark: str = "-", packed: bool = False) -> Path:
    for name, array in (("images", IMAGES), ("labels", LABELS)):
        file = f"{prefix}-{name}{mark}idx{array.ndim}-ubyte" + ".gz" * packed
        (directory / file).write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    return directory


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_files_plain_and_packed(tmp_path: Path, packed: bool, mark: str) -> None:
    source = open_idx(write_idx(tmp_path, mark=mark, packed=packed))
    check_protocol(source)
    assert source.class_names == ["0", "1", "2", "3"]
    assert source.classes.tolist() == LABELS.tolist()
    assert set(source.splits) == {"train"}
    np.testing.assert_array_equal(np.stack([source.read(position) for position in range(7)])[:, 0], IMAGES)


def test_t10k_becomes_the_split_test(tmp_path: Path) -> None:
    source = open_idx(write_idx(write_idx(tmp_path), "t10k", packed=True))
    check_protocol(source)
    assert source.splits.tolist() == ["train"] * 7 + ["test"] * 7
    assert (source.keys[0], source.keys[7]) == ("idx-train-000000", "idx-test-000000")
    np.testing.assert_array_equal(source.read(9)[0], IMAGES[2])


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda directory: (directory / "train-images-idx3-ubyte").unlink(),
            "has no train images: looked for train-images-idx3-ubyte, train-images.idx3-ubyte, train-images-idx3-",
        ),
        (
            lambda directory: (directory / "train-labels-idx1-ubyte").unlink(),
            "has no train labels: looked for train-lab",
        ),
        (overwrite("t10k-labels-idx1-ubyte", idx_bytes(LABELS)), "has no test images: looked for t10k-images-idx3"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(LABELS)), "begins with 00000801 instead of 00000803"),
        (overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS)[:-1]), "is truncated: its header promises 7 bytes"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES)[:-1]), "is truncated: its header promises 7 x 4 x 5"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES) + b"x"), "is longer than it says"),
        (overwrite("train-images-idx3-ubyte", b""), "begins with nothing instead of 00000803"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES)[:9]), "is truncated: it ends in its header"),
        (overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS[:5])), "7 images and 5 labels in the split train"),
        (overwrite("train-images-idx3-ubyte", struct.pack(">4I", 2051, *[2**32 - 1] * 3)), "is truncated"),
        (lambda directory: [path.unlink() for path in directory.iterdir()], "has no train images"),
    ],
)
def test_wrong_idx_files_are_told(tmp_path: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(write_idx(tmp_path))
    with pytest.raises(InputError, match=told):
        open_idx(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(idx_bytes(IMAGES)[:-1]), "is truncated"),
        (gzip.compress(idx_bytes(IMAGES) + b"x"), "is longer than it says"),
        (gzip.compress(idx_bytes(IMAGES))[:-12], "cannot be read"),
        (gzip.compress(struct.pack(">4I", 2051, *[2**32 - 1] * 3)), "is truncated"),
        (b"not packed at all", "cannot be read"),
    ],
)
def test_wrong_packed_idx_files_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    write_idx(tmp_path, packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match=told):
        open_idx(tmp_path)


def test_idx_files_without_records(tmp_path: Path) -> None:
    overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES[:0]))(tmp_path)
    overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS[:0]))(tmp_path)
    with pytest.raises(InputError, match="hold no images"):
        open_idx(tmp_path)
