"""Mutated shards: no hang, no crash that is not the documented error, no sample silently lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.scan import scan_tar
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.sources import Source
from cdt.data.write.shard import shard
from cdt.errors import InputError

MUTATIONS = 2100
N = 24
FILES = ("train/000000.tar", "index.json", "index.arrow")


def source(kind: int) -> Source:
    """Grey as png, latents as npy; with attributes."""
    rng = np.random.default_rng(kind)
    images: np.ndarray = rng.integers(0, 256, (N, 1, 6, 5), dtype=np.uint8)
    if kind == 1:
        images = rng.normal(size=(N, 4, 2, 2)).astype(np.float32)
    return Source(
        class_names=["a", "b"],
        keys=[f"k{number:02d}" for number in range(N)],
        classes=np.arange(N) % 2,
        shapes=np.tile(images.shape[1:], (N, 1)),
        dtype="float32" if kind == 1 else "uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(N, "train"),
        attributes={"male": np.arange(N) % 2},
    )


def flip(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)


def overwrite(content: bytearray, rng: np.random.Generator) -> None:
    start, size = rng.integers(len(content)), rng.integers(1, 2000)
    end = min(start + size, len(content))
    content[start:end] = rng.bytes(int(end - start))


def zero(content: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(len(content)) // 512 * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))


def cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[rng.integers(len(content)) :]


def remove(content: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(len(content)) // 512 * 512
    del content[start : start + 512 * rng.integers(1, 4)]


def repeat(content: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(len(content)) // 512 * 512
    content[start:start] = content[start : start + 512 * rng.integers(1, 8)]


def swap(content: bytearray, rng: np.random.Generator) -> None:
    one, other = (int(rng.integers(len(content))) // 512 * 512 for _ in range(2))
    first, second = content[one : one + 512], content[other : other + 512]
    if len(first) == len(second):
        content[one : one + 512], content[other : other + 512] = second, first


CHANGES: list[Callable[[bytearray, np.random.Generator], None]] = [flip, overwrite, zero, cut, remove, repeat, swap]


def mutate(original: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(original)
    for _ in range(rng.integers(1, 3)):
        CHANGES[rng.integers(len(CHANGES))](content, rng)
        if not content:
            break
    return bytes(content)


@pytest.mark.parametrize("count", [70, pytest.param(MUTATIONS, marks=pytest.mark.slow)])
def test_mutations(tmp_path: Path, count: int) -> None:
    """Of the tar or of the index; read by index, verified, and scanned anew."""
    roots = []
    for kind, pack in ((0, False), (1, False), (2, True)):
        roots.append(tmp_path / f"whole-{kind}")
        shard(source(kind), roots[-1], pack=pack)
    found = {"refused": 0, "bad samples": 0, "as it was": 0, "left out": 0}
    for number in range(count):
        rng = np.random.default_rng(number)
        whole = roots[number % len(roots)]
        root = Path(shutil.copytree(whole, tmp_path / "mutated", dirs_exist_ok=True))
        file = root / FILES[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
        file.write_bytes(mutate(file.read_bytes(), rng))
        found[read_by_index(root, whole)] += 1
        if file.suffix == ".tar":
            found["left out"] += scan_anew(root / FILES[0], whole)
    assert found["bad samples"] > count / 5
    assert found["left out"] > count / 20


def read_by_index(root: Path, whole: Path) -> str:
    """Every sample is what it was, or bad; what is not is found by ``verify`` at the latest."""
    problems = None
    try:
        problems = verify(root).problems
        index = Index.load(root)
    except InputError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    images, bad = ImageReader(index, 0).usable(np.arange(index.count))
    original = Index.load(whole)
    if index.count == original.count:
        expected = ImageReader(original, 0).images(np.arange(original.count))
        good = [place for place in range(index.count) if place not in bad]
        same = (images[good] == expected[good]).all() and (index.classes == original.classes).all()
        assert same or problems, "neither reading nor verifying noticed"
    else:
        assert problems
    return "bad samples" if bad else "as it was"


def scan_anew(tar: Path, whole: Path) -> bool:
    """Every sample is found again, or something is said of the tar."""
    scan = scan_tar(tar, "tar", None)
    keys = {sample.key for sample in scan.samples}
    bundled = (whole / "index.json").read_text().find('"order"') > 0 and Index.load(whole).extensions == ["raw"]
    if not bundled:
        expected = set(Index.load(whole).keys())
        assert keys == expected or scan.problems, "samples were lost in silence"
    (tar.parents[1] / "index.json").unlink(missing_ok=True)
    try:
        index_shards([str(tar)], tar.parents[1], max_bad=1.0)
    except InputError:
        return bool(scan.problems)
    return bool(scan.problems)
