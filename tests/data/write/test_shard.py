from __future__ import annotations

import errno
import json
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from cdt.data.format.decode import decode
from cdt.data.format.index import Index
from cdt.data.format.pack import by_size, encoded, packed, resized
from cdt.data.inspect.verify import verify
from cdt.data.sources import SOURCES, Record, Source
from cdt.data.write.shard import shard
from cdt.errors import InputError, RunError


def source(images: list[np.ndarray] | np.ndarray, classes: list[int] | None = None, **changes: Any) -> Source:
    """A source of given images of two classes, ``even`` and ``odd``, in turns."""
    fields: dict[str, Any] = {
        "class_names": ["even", "odd"],
        "keys": [f"k{number}" for number in range(len(images))],
        "classes": np.array(classes or [number % 2 for number in range(len(images))]),
        "shapes": np.array([image.shape for image in images]),
        "dtype": str(images[0].dtype),
        "read": images.__getitem__,
        "origin": {"name": "by hand"},
        "splits": np.full(len(images), "train"),
    }
    return Source(**fields | changes)


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def images_of(index: Index) -> dict[str, np.ndarray]:
    """Key -> image, by byte offsets alone."""
    images = {}
    for row, key in enumerate(index.keys()):
        shard_bytes = (index.root / index.shards[index.shard[row]].name).read_bytes()
        payload = shard_bytes[index.offset[row] : index.offset[row] + index.size[row]]
        images[key] = decode(payload, index.extensions[index.ext[row]])
    return images


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def test_digits_end_to_end(tmp_path: Path) -> None:
    digits = SOURCES["digits"]()
    summary = shard(digits, tmp_path / "out", keep={"4": 0.1, "7": 0.001}, drop=["9"], shard_mb=0.5)
    index = Index.load(tmp_path / "out")
    full = np.bincount(digits.classes)
    expected = full.copy()
    expected[[4, 7, 9]] = round(0.1 * full[4]), 1, 0
    assert index.class_counts.tolist() == expected.tolist() == summary.header.splits["train"].class_counts
    assert index.class_names == [str(digit) for digit in range(10)]
    index.check_sizes()
    assert all(info.bytes <= 500_000 for info in index.shards)
    assert len(index.shards) == 6
    images = images_of(index)
    assert len(images) == len(index)
    for position, key in enumerate(digits.keys):
        if key in images:
            np.testing.assert_array_equal(images[key], digits[position].image)
    header = json.loads((tmp_path / "out/index.json").read_text())
    assert header["source"]["keep"] == {"4": 0.1, "7": 0.001}
    assert header["source"]["name"] == "digits"


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": {"odd": 0.5}, "split": {"train": 0.5, "test": 0.5}, "shard_mb": 0.05}
    images = noise(200, 3, 5, 6)
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shard(source(images), tmp_path / name, seed=seed, **options)
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]
    assert len(written[0]) > 6
    assert all(written[0][name] != written[2][name] for name in written[0])


def test_webdataset_reads_what_the_index_says(tmp_path: Path) -> None:
    attributes = {"male": np.arange(50) % 3, "age": np.linspace(0, 1, 50, dtype=np.float32)}
    shard(source(noise(50, 1, 4, 4), attributes=attributes), tmp_path / "out", shard_mb=0.03)
    index = Index.load(tmp_path / "out")
    samples: list[dict[str, Any]] = []
    for info in index.shards:
        with (index.root / info.name).open("rb") as stream:
            # WebDataset's own reader leaves its last file open.
            samples += group_by_keys(tar_file_expander([{"url": info.name, "stream": stream}]))
    assert [sample["__key__"] for sample in samples] == index.keys()
    assert [int(sample["cls"]) for sample in samples] == index.classes.tolist()
    found = [json.loads(sample["json"]) for sample in samples]
    assert [one["male"] for one in found] == index.attributes["male"].tolist()
    assert [one["age"] for one in found] == index.attributes["age"].tolist()
    for sample in samples:
        number = int(sample["__key__"][1:])
        assert (int(sample["cls"]), json.loads(sample["json"])["male"]) == (number % 2, number % 3)


@pytest.mark.parametrize(
    ("images", "ext"),
    [
        (noise(4, 1, 3, 5), "png"),
        (noise(4, 3, 3, 5), "png"),
        (noise(4, 2, 3, 5), "npy"),
        (noise(4, 4, 3, 5).astype(np.float32) / 7, "npy"),
    ],
)
def test_pixels_come_back_exactly(tmp_path: Path, images: np.ndarray, ext: str) -> None:
    shard(source(images), tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert (index.extensions, index.shape, index.dtype) == ([ext], images.shape[1:], str(images.dtype))
    for key, image in images_of(index).items():
        np.testing.assert_array_equal(image, images[int(key[1:])])


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 60_000))
def test_offsets_and_sizes_of_any_tars(kinds: list[tuple[int, int]], limit: int) -> None:
    samples = [
        encoded(Record(f"k{number}", noise(1, 4, side, side)[0], number, {"a" * 300: 1} if attributes else {}))
        for number, (side, attributes) in enumerate(kinds)
    ]
    groups = list(by_size(samples, limit))
    assert [sample for group in groups for sample in group] == samples
    for group in groups:
        data, images = packed(group)
        assert len(data) <= limit or len(group) == 1
        for sample, image in zip(group, images, strict=True):
            payload = sample.members[sample.ext]
            assert data[image.offset : image.offset + image.size] == payload
    for one, following in pairwise(groups):
        assert len(packed([*one, following[0]])[0]) > limit


def test_tar_members_are_plain_and_without_time(tmp_path: Path) -> None:
    shard(source(noise(2, 1, 4, 4)), tmp_path / "out")
    with tarfile.open(tmp_path / "out/train/000000.tar") as tar:
        assert {member.mtime for member in tar} == {0}
        assert sorted(member.name for member in tar) == ["k0.cls", "k0.png", "k1.cls", "k1.png"]
        assert all(member.isreg() for member in tar)


def test_every_tar_has_all_classes(tmp_path: Path) -> None:
    shard(source(noise(600, 1, 4, 4), [0] * 300 + [1] * 300), tmp_path / "out", shard_mb=0.2)
    index = Index.load(tmp_path / "out")
    counts = [np.bincount(index.classes[index.shard == number], minlength=2) for number in range(len(index.shards))]
    assert len(counts) > 4
    assert np.min(counts[:-1]) > 20


def test_splits_get_folders_and_keep_acts_on_train_alone(tmp_path: Path) -> None:
    shard(source(noise(40, 1, 4, 4)), tmp_path / "out", split={"train": 0.5, "test": 0.5}, keep={"odd": 0.2})
    assert Index.load(tmp_path / "out").class_counts.tolist() == [10, 2]
    assert Index.load(tmp_path / "out", "test").class_counts.tolist() == [10, 10]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.arrow", "index.json", "test", "train"]
    keys = Index.load(tmp_path / "out").keys() + Index.load(tmp_path / "out", "test").keys()
    assert len(set(keys)) == 32


def test_fine_tuning_data_line_up_with_the_source(tmp_path: Path) -> None:
    shard(source(noise(10, 1, 4, 4)), tmp_path / "out", only=["odd"])
    index = Index.load(tmp_path / "out")
    assert index.class_names == ["even", "odd"]
    assert index.class_counts.tolist() == [0, 5]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (31, 31), (8, 9), (4, 6)])
def test_resizing_takes_the_central_square(kind: type, height: int, width: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, width), (3, height, width)).astype(kind)
    small = resized(ramp, 8)
    assert small.shape == (3, 8, 8)
    assert small.dtype == kind
    square = min(height, width)
    centres = (width - square) / 2 + (np.arange(8) + 0.5) * square / 8 - 0.5
    expected = np.broadcast_to(np.clip(centres * 255 / (width - 1), 0, 255), (3, 8, 8))
    # Lanczos reproduces a ramp up to its ripple, except at the image's own edges.
    np.testing.assert_allclose(small[:, :, 2:-2], expected[:, :, 2:-2], atol=4)


def test_resizing_averages_detail_away() -> None:
    checkers = ((np.indices((64, 64)).sum(axis=0) % 2) * 255).astype(np.uint8)[None]
    inner = resized(checkers, 8)[:, 1:-1, 1:-1].astype(float)
    np.testing.assert_allclose(inner, 127.5, atol=3)


def test_mixed_shapes_become_one_by_resizing(tmp_path: Path) -> None:
    mixed = source([np.full((1, 9, 7), 40, np.uint8), np.full((1, 6, 12), 200, np.uint8)])
    shard(mixed, tmp_path / "out", resize=4)
    images = images_of(Index.load(tmp_path / "out"))
    np.testing.assert_array_equal(images["k0"], np.full((1, 4, 4), 40))
    np.testing.assert_array_equal(images["k1"], np.full((1, 4, 4), 200))


def test_mixed_shapes_are_told_with_two_names_and_the_remedy(tmp_path: Path) -> None:
    mixed = source([np.zeros((1, 9, 7), np.uint8), np.zeros((1, 6, 12), np.uint8)], paths=["a/x.png", "b/y.png"])
    told = "(a/x.png has 1 x 9 x 7|b/y.png has 1 x 6 x 12), .*1 of 2 differ.*--resize N .*shortest side has 6"
    with pytest.raises(InputError, match=told):
        shard(mixed, tmp_path / "out")
    channels = source([np.zeros((1, 6, 6), np.uint8), np.zeros((3, 6, 6), np.uint8)])
    with pytest.raises(InputError, match="mixed shapes"):
        shard(channels, tmp_path / "other", resize=6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({}, {"resize": 0}, "--resize: 0"),
        ({}, {"seed": -1}, "--seed: -1"),
        ({}, {"shard_mb": 0}, "--shard-mb: 0"),
        ({}, {"shard_mb": float("nan")}, "--shard-mb: nan"),
        ({}, {"shard_mb": float("inf")}, "--shard-mb: inf"),
        ({}, {"only": ["evn"]}, "did you mean 'even'"),
        ({"keys": ["a", "a", "b", "c"]}, {}, "key 'a' is there 2 times"),
        ({"keys": ["a", "../b", "c", "d"]}, {}, "key '../b' is not"),
        ({"dtype": "float32"}, {}, "was read as uint8 \\[1, 4, 4\\] instead of float32 \\[1, 4, 4\\]"),
    ],
)
def test_wrong_input_writes_nothing(tmp_path: Path, changes: dict, options: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        shard(source(noise(4, 1, 4, 4), **changes), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_out_must_be_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shard(source(noise(4, 1, 4, 4)), tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "file").touch()
    for taken in ("out", "file"):
        with pytest.raises(InputError, match="exists and is not an empty directory"):
            shard(source(noise(4, 1, 4, 4)), tmp_path / taken)
    assert contents(tmp_path / "out") == before


def test_parents_are_made_and_links_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    shard(source(noise(4, 1, 4, 4)), tmp_path / "link")
    shard(source(noise(4, 1, 4, 4)), tmp_path / "new/out")
    assert len(Index.load(tmp_path / "target")) == len(Index.load(tmp_path / "new/out")) == 4


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), InputError("k7 cannot be read"), MemoryError()])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    images = noise(40, 1, 4, 4)

    def read(position: int) -> np.ndarray:
        if position == 7:
            raise failure
        return images[position]

    with pytest.raises(type(failure)):
        shard(source(images, read=read), tmp_path / "out", shard_mb=0.01)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_progress_is_told_leaves_nothing(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(source(noise(40, 1, 4, 4)), tmp_path / "out", shard_mb=0.01, progress=progress)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("full_at", ["000000.tar", "000002.tar"])
def test_a_full_disk_says_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    write_bytes = Path.write_bytes

    def write_until_full(path: Path, data: bytes) -> int:
        if path.name == full_at:
            write_bytes(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(
        RunError, match=r"disk is full: about 2\.\d MB are needed, [\d,.]+ MB are free at .*nothing was left"
    ):
        shard(source(noise(1000, 1, 4, 4)), tmp_path / "out", shard_mb=0.5)
    assert not list(tmp_path.iterdir())


def test_a_long_name_of_out(tmp_path: Path) -> None:
    shard(SOURCES["digits"](), tmp_path / ("o" * 255))
    assert verify(tmp_path / ("o" * 255)).ok
    with pytest.raises(OSError, match="File name too long"):
        shard(SOURCES["digits"](), tmp_path / ("o" * 256))
    assert [each.name for each in tmp_path.iterdir()] == ["o" * 255]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/out; nothing was left behind: Not a directory"):
        shard(source(noise(4, 1, 4, 4)), tmp_path / "file/out")


def test_progress_counts_samples_over_all_splits(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    shard(
        source(noise(20, 1, 4, 4)),
        tmp_path / "out",
        split={"train": 0.7, "test": 0.3},
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 20) for done in range(1, 21)]


def test_a_folder_of_pictures_end_to_end(tmp_path: Path) -> None:
    for name, colour in (("cats/one.png", "red"), ("cats/deep/two.jpg", "red"), ("dogs/one.png", "blue")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), colour).save(path)
    (tmp_path / "a.csv").write_text("file,tame\ncats/one.png,1\ntwo.jpg,0\ndogs/one.png,1\n")
    summary = shard(SOURCES["folder"](tmp_path / "pictures", tmp_path / "a.csv"), tmp_path / "out", resize=8)
    index = Index.load(tmp_path / "out")
    assert summary.header.class_names == index.class_names == ["cats", "dogs"]
    rows = dict(zip(index.keys(), zip(index.classes, index.attributes["tame"], strict=True), strict=True))
    assert rows == {"cats-one": (0, 1), "cats-deep-two": (0, 0), "dogs-one": (1, 1)}
    np.testing.assert_array_equal(images_of(index)["dogs-one"][:, 4, 4], [0, 0, 255])
