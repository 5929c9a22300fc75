"""Two shard directories read as one: rows, bytes, substitutes and messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.format.joined import joined
from cdt.data.read.bad import Ledger
from cdt.data.read.reader import ImageReader, TolerantReader
from cdt.data.sources import SOURCES
from cdt.data.sources.generated import open_generated
from cdt.data.stream import MixtureStream
from cdt.data.write.shard import shard
from cdt.diffusion.noise import normals
from cdt.dual import Draws
from cdt.errors import InputError, RunError

SAMPLES = normals(1, torch.arange(70), (1, 8, 8)).clamp(-1, 1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index]:
    """Digits 2 and 3 as png in several shards; generated samples in one bundle."""
    root = tmp_path_factory.mktemp("parts")
    shard(SOURCES["digits"](), root / "digits", only=["2", "3"], shard_mb=0.2)
    shard(open_generated(SAMPLES, {"name": "made up"}, bounded=True), root / "samples", pack=True)
    return Index.load(root / "digits"), Index.load(root / "samples")


def test_rows_are_those_of_the_first_and_then_of_the_second(parts: tuple[Index, Index]) -> None:
    first, second = parts
    both = joined(first, second)
    assert len(first.shards) > 1
    assert len(both) == len(first) + len(second)
    assert both.keys() == first.keys() + second.keys()
    rows = np.random.default_rng(0).permutation(len(both))
    expected = np.concatenate([ImageReader(part, 512).images(np.arange(len(part))) for part in parts])
    for cache_mb in (0, 512):
        np.testing.assert_array_equal(ImageReader(both, cache_mb).images(rows), expected[rows])
    assert both.class_counts.tolist() == [*first.class_counts, 70]
    assert both.part_of(len(first) - 1) is first
    assert both.part_of(len(first)) is second


def test_files_of_both_may_be_of_the_same_types(parts: tuple[Index, Index]) -> None:
    first, second = parts
    both = joined(second, joined(first, first))
    images = ImageReader(both, 0).images(np.array([3, 70, 70 + len(first)]))
    np.testing.assert_array_equal(images[0], ImageReader(second, 0).images(np.array([3]))[0])
    np.testing.assert_array_equal(images[1], images[2])


def test_the_base_stream_is_the_first_part_s(parts: tuple[Index, Index]) -> None:
    """Sample by sample the one that the part alone would have; the other part comes in by its own stream."""
    first, second = parts
    both = joined(first, second)
    rows = {"old": np.arange(len(first), len(both))}
    cells = np.repeat([0, 1], [len(first), len(second)])

    def half(lambdas: np.ndarray) -> Draws:
        return Draws(np.array([0.5, 0.5]), np.ones(2), np.ones(2))

    def only(lambdas: np.ndarray) -> Draws:
        return Draws(np.ones(1), np.ones(1), np.ones(1))

    config = DataConfig(shards="unused")
    stream = MixtureStream(config, both, rows, cells, half, lambdas=np.ones(1), batch_size=16, seed=3)
    alone = MixtureStream(config, first, {}, cells[: len(first)], only, lambdas=np.ones(0), batch_size=8, seed=3)
    replayed = set()
    for _ in range(12):
        batch, base = next(stream), next(alone)
        assert batch.streams.tolist() == [0] * 8 + [1] * 8
        assert batch.cells.tolist() == batch.streams.tolist()
        assert (batch.images[:8] == base.images).all()
        replayed |= {image.numpy().tobytes() for image in batch.images[8:]}
    assert len(replayed) == 70  # of 96 draws: each once before any twice


def test_a_damaged_sample_is_replaced_by_one_of_its_part_and_told_with_its_place(
    parts: tuple[Index, Index], tmp_path: Path
) -> None:
    shard(open_generated(SAMPLES, {"name": "made up"}, bounded=True), tmp_path / "samples", pack=False)
    second = Index.load(tmp_path / "samples")
    tar = tmp_path / "samples" / second.shards[0].name
    content = bytearray(tar.read_bytes())
    start = int(second.offset[5])
    content[start : start + int(second.size[5])] = bytes(int(second.size[5]))
    tar.write_bytes(content)
    both, row = joined(parts[0], second), len(parts[0]) + 5
    cells = np.zeros(len(both), dtype=np.int64)
    reader = TolerantReader(ImageReader(both, 0), both, cells, key=1)
    images, there, bad = reader.read(np.array([row]), np.array([9]))
    assert len(parts[0]) <= there[0] < len(both)
    assert there[0] != row
    assert (images[0] == ImageReader(second, 0).usable(there - len(parts[0]))[0][0]).all()
    assert list(bad) == [0]
    others = ImageReader(second, 0).usable(np.arange(70))[0]
    assert any((images[0] == other).all() for place, other in enumerate(others) if place != 5)
    with pytest.raises(RunError, match=rf"{tmp_path}/samples/train/000000.tar, byte {start}: .*verify {tmp_path}"):
        ImageReader(both, 0).images(np.array([row]))
    ledger = Ledger.of(both, 2, max_fraction=0.5)
    told = ledger.describe(bad.values())
    assert told[0]["key"] == second.keys()[5]


def test_images_of_two_kinds_do_not_join(parts: tuple[Index, Index], tmp_path: Path) -> None:
    shard(open_generated(SAMPLES, {}, bounded=False), tmp_path / "latents")
    shard(SOURCES["digits"](), tmp_path / "larger", only=["2"], resize=16)
    for name, reason in (("latents", "dtype float32"), ("larger", r"shape \(1, 16, 16\)")):
        with pytest.raises(InputError, match=f"{name}: its images have {reason}"):
            joined(parts[0], Index.load(tmp_path / name))
