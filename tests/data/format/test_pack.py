"""Bundles: many tiny images in one array, read one by one like any other."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.sources import SOURCES, Source
from cdt.data.write.shard import shard

N = 300


def source(dtype: str = "uint8", shape: tuple[int, int, int] = (1, 28, 28)) -> Source:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (N, *shape), dtype=np.uint8)
    images = noise if dtype == "uint8" else noise.astype(np.float32) / 7
    return Source(
        class_names=["a", "b", "c"],
        keys=[f"k{number:03d}" for number in range(N)],
        classes=np.arange(N) % 3,
        shapes=np.tile(shape, (N, 1)),
        dtype="uint8" if dtype == "uint8" else "float32",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(N, "train"),
        attributes={"male": np.arange(N) % 2, "age": np.linspace(0, 1, N, dtype=np.float32)},
    )


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 4), (4, 64, 64)])
def test_bundles_hold_what_single_records_hold(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    data = source(dtype, shape)
    shard(data, tmp_path / "single", split={"train": 0.8, "test": 0.2})
    shard(data, tmp_path / "bundled", split={"train": 0.8, "test": 0.2}, pack=True)
    for split in ("train", "test"):
        single, bundled = (Index.load(tmp_path / name, split) for name in ("single", "bundled"))
        assert bundled.extensions == ["raw"]
        assert bundled.keys() == single.keys()
        assert bundled.order == single.order
        np.testing.assert_array_equal(bundled.classes, single.classes)
        for name in ("male", "age"):
            np.testing.assert_array_equal(bundled.attributes[name], single.attributes[name])
        rows = np.arange(single.count)
        np.testing.assert_array_equal(ImageReader(bundled, 0).images(rows), ImageReader(single, 0).images(rows))
    assert verify(tmp_path / "bundled").problems == []


def test_several_tars_and_bundles(tmp_path: Path) -> None:
    shard(source(shape=(4, 64, 64)), tmp_path / "out", pack=True, shard_mb=1.2)
    index = Index.load(tmp_path / "out")
    assert len(index.shards) > 3
    with tarfile.open(tmp_path / "out" / index.shards[0].name) as tar:
        assert len(tar.getnames()) >= 6
    assert verify(tmp_path / "out").problems == []


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        shard(source(), tmp_path / name, pack=True)
    one, other = tmp_path / "one", tmp_path / "other"
    assert {path.relative_to(one): path.read_bytes() for path in one.rglob("*.*")} == {
        path.relative_to(other): path.read_bytes() for path in other.rglob("*.*")
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
def test_webdataset_reads_bundles(tmp_path: Path) -> None:
    """They are plain WebDataset: one sample with the arrays of many."""
    shard(source(), tmp_path / "out", pack=True)
    paths = [str(path) for path in sorted((tmp_path / "out/train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())  # pyright: ignore[reportAttributeAccessIssue]
    images = np.concatenate([sample["images.npy"] for sample in samples])
    assert images.shape == (N, 1, 28, 28)
    keys = [key for sample in samples for key in sample["json"]["keys"]]
    np.testing.assert_array_equal(images, np.stack([source().read(int(key[1:])) for key in keys]))
    np.testing.assert_array_equal(
        np.concatenate([s["classes.npy"] for s in samples]) % 3, [int(k[1:]) % 3 for k in keys]
    )


def test_tiny_images_are_bundled_unless_asked_otherwise(tmp_path: Path) -> None:
    assert main(["shard", "digits", str(tmp_path / "auto")]) == 0
    assert main(["shard", "digits", str(tmp_path / "single"), "--no-pack"]) == 0
    assert Index.load(tmp_path / "auto").extensions == ["raw"]
    assert Index.load(tmp_path / "single").extensions == ["png"]
    shard(source(shape=(4, 64, 64)), tmp_path / "large", pack=None)
    assert Index.load(tmp_path / "large").extensions == ["npy"]
    shard(SOURCES["digits"](), tmp_path / "function")
    assert Index.load(tmp_path / "function").extensions == ["png"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 7))
def test_each_flipped_bit_of_an_image_is_found(tmp_path: Path, place: int, bit: int) -> None:
    root = tmp_path / "out"
    if not root.exists():
        shard(source(), root, pack=True)
    index = Index.load(root)
    row = place % N
    byte = int(index.offset[row]) + place % int(index.size[row])
    path = root / index.shards[int(index.shard[row])].name
    with path.open("r+b") as file:
        file.seek(byte)
        (found,) = file.read(1)
        file.seek(byte)
        file.write(bytes([found ^ 1 << bit]))
        file.flush()
        _, bad = ImageReader(index, 0).usable(np.arange(N))
        file.seek(byte)
        file.write(bytes([found]))
    assert [(sample.row, sample.kind) for sample in bad.values()] == [(row, "wrong checksum")]
