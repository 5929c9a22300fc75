from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdt.data.format.index import Index
from cdt.data.read.files import LocalFiles
from cdt.data.read.reader import ImageReader, normalise
from cdt.data.sources import Source
from cdt.data.write.shard import shard
from cdt.errors import RunError

ALL_IN_MEMORY, NOTHING_IN_MEMORY = 100, 0


def write_shards(root: Path, images: np.ndarray) -> Index:
    """Shards of about ten images each; class i holds every third image."""
    source = Source(
        class_names=["a", "b", "c"],
        keys=[f"k{number:03d}" for number in range(len(images))],
        classes=np.arange(len(images)) % 3,
        shapes=np.tile(images.shape[1:], (len(images), 1)),
        dtype="uint8" if images.dtype == np.uint8 else "float32",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(len(images), "train"),
    )
    shard(source, root, shard_mb=0.025)
    return Index.load(root)


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return write_shards(tmp_path / "shards", noise(60, 1, 6, 5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cache_mb", [ALL_IN_MEMORY, NOTHING_IN_MEMORY])
def test_bytes_at_an_offset_are_the_tars_own_file(tmp_path: Path, channels: int, cache_mb: float) -> None:
    index = write_shards(tmp_path / "shards", noise(40, channels, 6, 5))
    assert len(index.shards) > 2
    images = ImageReader(index, cache_mb).images(np.arange(40))
    for row, key in enumerate(index.keys()):
        with tarfile.open(index.root / index.shards[index.shard[row]].name) as tar:
            file = tar.extractfile(f"{key}.png")
            assert file is not None
            pixels = np.asarray(Image.open(file)).reshape(6, 5, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(images[row], pixels)
        np.testing.assert_array_equal(images[row], noise(40, channels, 6, 5)[int(key[1:])])


def test_latents_are_read_as_they_were_written(tmp_path: Path) -> None:
    latents = np.random.default_rng(1).normal(size=(10, 4, 3, 3)).astype(np.float32)
    index = write_shards(tmp_path / "shards", latents)
    keys = index.keys()
    images = ImageReader(index, ALL_IN_MEMORY).images(np.arange(10))
    np.testing.assert_array_equal(images, latents[[int(key[1:]) for key in keys]])
    assert normalise(images) is images


def test_with_and_without_memory_are_alike(index: Index) -> None:
    remembering, forgetting = ImageReader(index, ALL_IN_MEMORY), ImageReader(index, NOTHING_IN_MEMORY)
    rng = np.random.default_rng(2)
    for count in (20, 20, 1, 0, 20):
        rows = rng.integers(0, index.count, count)  # with repetitions
        images = remembering.images(rows)
        assert images.dtype == np.uint8
        assert images.shape == (count, 1, 6, 5)
        np.testing.assert_array_equal(images, forgetting.images(rows))
        images[:] = 0  # the caller's own


def test_memory_is_read_once(index: Index) -> None:
    reader = ImageReader(index, ALL_IN_MEMORY)
    before = reader.images(np.arange(30))
    for info in index.shards:
        path = index.root / info.name
        with path.open("r+b") as file:
            file.write(bytes(info.bytes))
    np.testing.assert_array_equal(reader.images(np.arange(30)), before)
    with pytest.raises(RunError):
        ImageReader(index, NOTHING_IN_MEMORY).images(np.arange(30))


def test_few_shards_are_open_at_once(index: Index) -> None:
    files = LocalFiles(index, max_open=2)
    rows = np.random.default_rng(3).permutation(index.count)
    for row in rows.tolist():
        content = (index.root / index.shards[index.shard[row]].name).read_bytes()
        place = int(index.shard[row]), int(index.offset[row]), int(index.size[row])
        assert files.read(*place) == content[index.offset[row] :][: index.size[row]]
        if row % 10 == 0:
            assert sum(_is_open(index.root / info.name) for info in index.shards) <= 2


def _is_open(path: Path) -> bool:
    return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())


def cut_short(index: Index, row: int) -> Index:
    path = index.root / index.shards[index.shard[row]].name
    os.truncate(path, index.offset[row] + 7)
    return index


def remove(index: Index, row: int) -> Index:
    (index.root / index.shards[index.shard[row]].name).unlink()
    return index


def overwrite(index: Index, row: int) -> Index:
    with (index.root / index.shards[index.shard[row]].name).open("r+b") as file:
        file.seek(index.offset[row])
        file.write(b"no image")
    return index


def overwrite_without_checksum(index: Index, row: int) -> Index:
    return replace(overwrite(index, row), crc=np.full(index.count, -1))


def other_shape(index: Index, row: int) -> Index:
    return replace(index, shape=(2, 6, 5))


def other_size(index: Index, row: int) -> Index:
    return replace(index, shape=(1, 5, 6))


def other_dtype(index: Index, row: int) -> Index:
    return replace(index, dtype="float32")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut_short, r"the shard ends early: 7 of \d+ bytes"),
        (remove, "No such file or directory"),
        (overwrite, "the image's CRC-32 is not [0-9a-f]{8}, as the index says"),
        (overwrite_without_checksum, "not a usable png image"),
        (other_shape, r"uint8 of shape \(1, 6, 5\), expected uint8 of \(2, 6, 5\)"),
        (other_size, "6 x 5 pixels, expected 5 x 6"),
        (other_dtype, r"uint8 of shape \(1, 6, 5\), expected float32"),
    ],
)
@pytest.mark.parametrize("cache_mb", [ALL_IN_MEMORY, NOTHING_IN_MEMORY])
def test_errors_name_shard_and_byte(
    index: Index, spoil: Callable[[Index, int], Index], told: str, cache_mb: float
) -> None:
    row = 25
    path = index.root / index.shards[index.shard[row]].name
    with pytest.raises(RunError, match=told) as caught:
        ImageReader(spoil(index, row), cache_mb).images(np.array([row]))
    assert str(caught.value).startswith(f"{path}, byte {index.offset[row]}: ")
    assert f"`cdt verify {index.root}`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_spread_over_minus_one_to_one() -> None:
    images = normalise(np.array([0, 51, 255], dtype=np.uint8))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, [-1, -0.6, 1], atol=1e-7)
