"""Damaged data: found, counted by kind, named, replaced by a function of the position, within a budget."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.sources import Source
from cdt.data.stream import Batch, MixtureStream
from cdt.data.write.shard import shard
from cdt.dual import Draws
from cdt.errors import RunError

BATCH, N = 16, 96


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of three classes in shards of about ten."""
    images = np.random.default_rng(0).integers(0, 256, (N, 1, 4, 5), dtype=np.uint8)
    source = Source(
        class_names=["a", "b", "c"],
        keys=[f"k{number:02d}" for number in range(N)],
        classes=np.arange(N) % 3,
        shapes=np.tile(images.shape[1:], (N, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(N, "train"),
    )
    root = tmp_path_factory.mktemp("whole") / "shards"
    shard(source, root, shard_mb=0.025)
    return root


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Index:
    return Index.load(shutil.copytree(whole, tmp_path / "shards"))


def mixture_of(lambdas: np.ndarray) -> Draws:
    weights = np.array([1.0, *lambdas])
    return Draws(weights / weights.sum(), np.ones(len(weights)), np.ones(1))


def make(index: Index, *, rank: int = 0, world: int = 1, workers: int = 0, fraction: float = 0.5) -> MixtureStream:
    config = DataConfig(shards=str(index.root), loader_workers=workers, cache_mb=0, max_bad_fraction=fraction)
    return MixtureStream(
        config,
        index,
        {"c": np.flatnonzero(index.classes == 2)},
        np.zeros(index.count, np.int64),
        mixture_of,
        lambdas=np.array([0.5]),
        batch_size=BATCH,
        seed=1,
        rank=rank,
        world=world,
    )


def path_of(index: Index, row: int) -> Path:
    return index.root / index.shards[int(index.shard[row])].name


def flip_bit(index: Index, row: int, byte: int = 60) -> Index:
    with path_of(index, row).open("r+b") as file:
        file.seek(int(index.offset[row]) + byte)
        (found,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([found ^ 4]))
    return index


def without_checksums(index: Index) -> Index:
    return replace(index, crc=np.full(index.count, -1))


def put(index: Index, row: int, payload: bytes, ext: str = "png") -> Index:
    """Another image in the place of a row's own, as a shard has it whose index was made of it."""
    path = path_of(index, row)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        offset = file.tell()
        file.write(payload)
    extensions = [*index.extensions, ext]
    codes, offsets, sizes = index.ext.copy(), index.offset.copy(), index.size.copy()
    codes[row], offsets[row], sizes[row] = len(extensions) - 1, offset, len(payload)
    return replace(without_checksums(index), ext=codes, extensions=extensions, offset=offsets, size=sizes)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def cut_last(index: Index, row: int) -> Index:
    """The tar ends inside of the last image that it holds."""
    last = max(np.flatnonzero(index.shard == index.shard[row]), key=lambda other: index.offset[other])
    os.truncate(path_of(index, row), int(index.offset[last]) + 5)
    return index


def remove(index: Index, row: int) -> Index:
    path_of(index, row).unlink()
    return index


def lock_away(index: Index, row: int) -> Index:
    path = path_of(index, row)
    path.unlink()
    path.mkdir()
    return index


def latents(index: Index, row: int) -> Index:
    """All images are npy of float32, one with a value that is not finite."""
    values = np.zeros((1, 4, 5), np.float32)
    for other in range(index.count):
        index = put(index, other, npy(values + np.nan if other == row else values), "npy")
    return replace(index, dtype="float32")


DAMAGES: dict[str, tuple[Callable[[Index, int], Index], str, str]] = {
    "a bit of an image": (flip_bit, "wrong checksum", "CRC-32"),
    "a bit of an image without checksum": (
        lambda index, row: without_checksums(flip_bit(index, row)),
        "damaged image",
        "the chunk at byte 33 is damaged",
    ),
    "a tar that ends early": (cut_last, "truncated shard", "the shard ends early: 5 of"),
    "a shard that disappears": (remove, "missing shard", "No such file or directory"),
    "a shard that cannot be read": (lock_away, "unreadable shard", "Is a directory"),
    "another size": (lambda index, row: put(index, row, png(5, 3)), "wrong shape or type", "3 x 5 pixels"),
    "other channels": (
        lambda index, row: put(index, row, npy(np.zeros((3, 4, 5), np.uint8)), "npy"),
        "wrong shape or type",
        r"uint8 of shape \(3, 4, 5\)",
    ),
    "a decompression bomb": (
        lambda index, row: put(index, row, png(30_000, 30_000)),
        "damaged image",
        "Image size .900000000 pixels. exceeds limit",
    ),
    "not a number": (latents, "not finite", "not finite"),
    "an object array": (
        lambda index, row: put(index, row, npy(np.array([[[None] * 5] * 4])), "npy"),
        "damaged image",
        "the npy array holds object",
    ),
    "an encoded image of 100 MB": (
        lambda index, row: put(index, row, bytes(100_000_000)),
        "too large",
        "100000000 bytes; the limit is 67108864",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_named_and_replaced(index: Index, damage: str) -> None:
    spoil, kind, reason = DAMAGES[damage]
    stream = make(spoil(index, 25))
    for _ in range(N // BATCH * 2):
        images = next(stream).images
        assert torch.isfinite(images).all()
    found = stream.ledger.describe(stream.ledger.take_new())
    assert found
    assert {sample["kind"] for sample in found} == {kind}
    assert re.search(reason, found[0]["reason"])
    assert {sample["shard"] for sample in found} == {index.shards[int(index.shard[25])].name}
    if "shard" not in kind:
        assert [sample["key"] for sample in found] == [index.keys()[25]]
    arrived, replaced = stream.ledger.take_counts()
    assert (arrived + replaced).sum() == 2 * N
    assert replaced.sum() >= len(found)


def spoiled(index: Index) -> Index:
    for row in (3, 25, 26, 70):
        flip_bit(index, row)
    return index


def sequence(streams: list[MixtureStream], count: int) -> list[torch.Tensor]:
    return [torch.cat([next(stream).images for stream in streams]) for _ in range(count)]


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (4, 0), (2, 2)])
def test_substitutes_depend_on_the_position_alone(index: Index, world: int, workers: int) -> None:
    spoiled(index)
    expected = sequence([make(index)], 12)
    found = sequence([make(index, rank=rank, world=world, workers=workers) for rank in range(world)], 12)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 1), (1, 2), (2, 4)])
def test_a_restored_stream_replaces_as_the_uninterrupted_one(index: Index, before: int, after: int) -> None:
    """Also on another number of ranks; samples were replaced before and are after."""
    expected = sequence([make(spoiled(index))], 12)
    streams = [make(index, rank=rank, world=before) for rank in range(before)]
    assert all(map(torch.equal, sequence(streams, 4), expected))
    assert any(stream.ledger.replaced.sum() for stream in streams)
    resumed = [make(index, rank=rank, world=after) for rank in range(after)]
    for stream in resumed:
        stream.restore(streams[0].state())
    assert all(map(torch.equal, sequence(resumed, 8), expected[4:]))
    assert any(stream.ledger.replaced.sum() for stream in resumed)


def test_another_sample_of_the_class_stands_in(index: Index) -> None:
    """All but the bad one are where they were."""
    before: list[Batch] = [next(stream) for stream in [make(index)] for _ in range(8)]
    flip_bit(index, 25)
    stream = make(index)
    replaced = 0
    for batch in before:
        after = next(stream)
        differs = (after.images != batch.images).flatten(1).any(1)
        replaced += int(differs.sum())
        assert torch.equal(after.positions, batch.positions)
        assert torch.equal(after.streams, batch.streams)
        for place in differs.nonzero().flatten().tolist():
            same = [b.images[i] for b in before for i in range(BATCH) if torch.equal(b.images[i], after.images[place])]
            assert same, "it is a sample of the data"
        assert torch.equal(after.rows, torch.where(differs, -1, batch.rows))
    assert replaced == stream.ledger.replaced.sum() > 0


def test_beyond_the_budget_the_run_stops_with_counts_and_the_worst_shards(index: Index) -> None:
    for row in range(0, 96, 3):
        flip_bit(index, row)
    remove(index, 0)
    stream = make(index, fraction=0.1)
    sequence([stream], 20)
    with pytest.raises(RunError) as caught:
        stream.ledger.check()
    text = str(caught.value)
    assert re.match(r"\d\d samples are unusable \((wrong checksum|missing shard) \d+, ", text)
    worst = text.split("most of them in ")[1].split(". Allowed")[0].split("; ")
    assert len(worst) == 3
    assert "train/000000.tar (" in text or "No such file" in text
    assert "Allowed are 9 of 96 (data.max_bad_fraction 0.1)" in text
    assert "\n" not in text


def test_without_a_budget_one_is_too_many(index: Index) -> None:
    stream = make(flip_bit(index, 25), fraction=0.0)
    sequence([stream], 20)
    with pytest.raises(RunError, match=r"^1 samples are unusable \(wrong checksum 1\).*train/.*CRC-32"):
        stream.ledger.check()


def test_a_class_without_a_usable_sample_stops(index: Index) -> None:
    for row in np.flatnonzero(index.classes == 2).tolist():
        flip_bit(index, row)
    with pytest.raises(RunError, match="of 32 samples of class c, 32 were tried as replacements and none is usable"):
        sequence([make(index, fraction=1)], 2)
