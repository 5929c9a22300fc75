from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cdt.data.format.problems import LISTED
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.verify import verify
from cdt.data.sources import Source
from cdt.data.write.shard import shard
from cdt.errors import InputError

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 grey images in the splits train and test, with attributes, in several tars."""
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 5), dtype=np.uint8)
    source = Source(
        class_names=["even", "odd"],
        keys=[f"k{number}" for number in range(40)],
        classes=np.arange(40) % 2,
        shapes=np.tile((1, 6, 5), (40, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(40, "train"),
        attributes={"male": np.arange(40) % 3, "age": np.linspace(0, 1, 40, dtype=np.float32)},
    )
    root = tmp_path_factory.mktemp("whole") / "shards"
    shard(source, root, split={"train": 0.75, "test": 0.25}, shard_mb=0.04)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def test_what_was_written_is_right(root: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify(root, lambda done, total: told.append((done, total)))
    assert report.ok
    assert report.problems == []
    assert report.samples == 40
    assert report.shards >= 3
    assert told == [(done, report.shards) for done in range(1, report.shards + 1)]


def test_a_split_without_a_shard_is_no_trouble(root: Path) -> None:
    about = json.loads((root / "index.json").read_text())
    about["splits"]["none"] = {"count": 0, "class_counts": [0, 0], "shards": []}
    (root / "index.json").write_text(json.dumps(about))
    assert verify(root).ok


def test_a_class_field_that_is_no_name(root: Path) -> None:
    about = json.loads((root / "index.json").read_text())
    about["source"] |= {"name": "index", "class_field": ["a"]}
    (root / "index.json").write_text(json.dumps(about))
    assert list(verify(root).counts) == ["missing label"]


def first_tar(root: Path) -> Path:
    return root / "train/000000.tar"


def rewrite(root: Path, change: Callable[[Members], Members]) -> None:
    """Write the first tar anew with other members."""
    with tarfile.open(first_tar(root)) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # pyright: ignore[reportOptionalMemberAccess]
    with tarfile.open(first_tar(root), "w") as tar:
        for name, payload in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def replace(suffix: str, payload: bytes) -> Callable[[Path], object]:
    """Put other bytes into the first file with this suffix."""

    def change(members: Members) -> Members:
        name = next(name for name, _ in members if name.endswith(suffix))
        return [(member, payload if member == name else old) for member, old in members]

    return lambda root: rewrite(root, change)


def remove(suffix: str) -> Callable[[Path], object]:
    """Take the first file with this suffix out."""

    def change(members: Members) -> Members:
        name = next(name for name, _ in members if name.endswith(suffix))
        return [member for member in members if member[0] != name]

    return lambda root: rewrite(root, change)


def add(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda root: rewrite(root, lambda there: there + list(members))


def spoil_byte(position: int) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        content = bytearray(first_tar(root).read_bytes())
        content[position] ^= 0xFF
        first_tar(root).write_bytes(content)

    return apply


def special(kind: bytes, name: str = "k1.png", target: str = "/etc/passwd") -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        with tarfile.open(first_tar(root), "a") as tar:
            tar.addfile(info)

    return apply


def edit_json(root: Path) -> None:
    header = json.loads((root / "index.json").read_text())
    even, odd = header["splits"]["train"]["class_counts"]
    header["splits"]["train"]["class_counts"] = [even + 1, odd - 1]
    (root / "index.json").write_text(json.dumps(header))


def png(*shape: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def copy_tar(name: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(first_tar(root), root / name)


def cut(size: int) -> Callable[[Path], object]:
    return lambda root: first_tar(root).write_bytes(first_tar(root).read_bytes()[:size])


def all_odd(members: Members) -> Members:
    return [(name, b"01" if name.endswith(".cls") else payload) for name, payload in members]


def swap_samples(members: Members) -> Members:
    return members[3:6] + members[:3] + members[6:]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: first_tar(root).unlink(), "missing shard: train/000000.tar"),
        (copy_tar("train/9.tar"), "tar that the index does not know: train/9.tar"),
        (copy_tar("x.tar"), "tar that the index does not know: x.tar"),
        (add(("k99.cls", bytes(20_000))), "wrong size: train/000000.tar has"),
        (spoil_byte(-1), "wrong checksum: train/000000.tar"),
        (cut(0), "missing sample: train/000000.tar: k"),
        (cut(1100), "truncated tar: train/000000.tar"),
        (lambda root: first_tar(root).write_bytes(b"no tar" * 99), "damaged header: train/000000.tar"),
        (spoil_byte(3 * 1024 + 100), "damaged header: train/000000.tar: byte 3072, the next valid one is at 4"),
        (cut(5000), "wrong count: train/000000.tar holds"),
        (remove(".cls"), "missing label: train/000000.tar: k"),
        (replace(".cls", b""), "missing label: train/000000.tar: k"),
        (replace(".cls", b"two"), "wrong label: train/000000.tar: k"),
        (replace(".cls", b"2"), ": 2 is out of range, there are 2 classes"),
        (lambda root: rewrite(root, all_odd), " 1 instead of 0"),
        (remove(".png"), "wrong files: train/000000.tar: k"),
        (replace(".png", b"no image"), "damaged image: train/000000.tar: k"),
        (replace(".png", png(5, 6)), "wrong shape or type: train/000000.tar: k"),
        (replace(".png", png(6, 5, 3)), "expected uint8 of (1, 6, 5)"),
        (remove(".json"), "wrong attributes: train/000000.tar: k"),
        (replace(".json", b'{"male": 7, "age": 0.5}'), "wrong attributes: train/000000.tar: k"),
        (replace(".json", b'{"male": 1' + b"0" * 400 + b', "age": "x"}'), "wrong attributes: train/000000.tar: k"),
        (replace(".json", b"["), "attributes that cannot be read: train/000000.tar: k"),
        (replace(".json", b"[1]"), "attributes that cannot be read: train/000000.tar: k"),
        (add(("z.png", png(6, 5)), ("z.cls", b"0")), "sample that the index does not know: train/000000.tar: z"),
        (lambda root: rewrite(root, lambda there: there + there[:3]), "duplicate key: train/000000.tar: k"),
        (lambda root: rewrite(root, lambda there: there[:1] + there), "duplicate file: train/000000.tar: k"),
        (lambda root: rewrite(root, swap_samples), "wrong offset: train/000000.tar: k"),
        (add(("z", b"")), "file without extension: train/000000.tar: z"),
        (add(("/z.png", b"")), "refused: path leads outside: train/000000.tar: /z.png"),
        (add(("a/../../z.png", b"")), "refused: path leads outside: train/000000.tar: a/../../z.png"),
        (add(("z\x1b[31m.png", b"")), "train/000000.tar: z?[31m"),
        (special(tarfile.SYMTYPE), "refused: no plain file: train/000000.tar: k1.png"),
        (special(tarfile.LNKTYPE), "refused: no plain file: train/000000.tar: k1.png"),
        (special(tarfile.CHRTYPE), "refused: no plain file: train/000000.tar: k1.png"),
        (special(tarfile.FIFOTYPE), "refused: no plain file: train/000000.tar: k1.png"),
        (lambda root: (root / "index.arrow").write_bytes(b""), "wrong index: "),
        (edit_json, "wrong index: "),
    ],
)
def test_every_damage_is_found_and_placed(root: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(root)
    report = verify(root)
    assert not report.ok
    assert any(told in line for line in report.problems), report.problems
    assert all("\n" not in line for line in report.problems)


def test_an_undamaged_tar_with_another_hash_is_told(root: Path) -> None:
    header = json.loads((root / "index.json").read_text())
    header["splits"]["test"]["shards"][0]["sha256"] = "0" * 64
    (root / "index.json").write_text(json.dumps(header))
    assert verify(root).problems == ["wrong checksum: test/000000.tar"]


def test_all_problems_are_collected_and_long_lists_cut(root: Path) -> None:
    (root / "test/000000.tar").unlink()
    rewrite(root, lambda there: [(name, b"x" if name.endswith(".cls") else payload) for name, payload in there])
    report = verify(root)
    assert {"missing shard", "wrong label", "wrong checksum"} <= set(report.counts)
    labels = [line for line in report.problems if line.startswith("wrong label")]
    assert len(labels) == LISTED + 1
    assert labels[-1] == f"wrong label: {report.counts['wrong label'] - LISTED} more"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_passes_and_none_breaks_the_check(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "shards", dirs_exist_ok=True))
    content = bytearray(first_tar(root).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    first_tar(root).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert first_tar(root).read_bytes() == first_tar(whole).read_bytes() or not verify(root).ok


@pytest.mark.parametrize("pack", [False, True])
def test_an_attribute_that_differs_in_its_last_digits_is_found(tmp_path: Path, pack: bool) -> None:
    images = np.zeros((2, 1, 6, 5), np.uint8)
    source = Source(
        class_names=["a"],
        keys=["k0", "k1"],
        classes=np.zeros(2, int),
        shapes=np.tile((1, 6, 5), (2, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(2, "train"),
        attributes={"age": np.array([0.123456789, 0.5])},
    )
    shard(source, tmp_path, pack=pack)
    assert verify(tmp_path).ok
    tar = first_tar(tmp_path)
    tar.write_bytes(tar.read_bytes().replace(b"0.123456789", b"0.123456788"))
    (told,) = [line for line in verify(tmp_path).problems if line.startswith("wrong attributes")]
    assert "k0: {'age': 0.123456788} instead of {'age': 0.123456789}" in told


def test_a_key_in_two_splits_is_found(root: Path) -> None:
    with tarfile.open(root / "test/000000.tar") as tar:
        name = tar.getnames()[0].split(".")[0]
    add((f"{name}.cls", b"0"), (f"{name}.png", png(6, 5)))(root)
    assert any(line.startswith(f"duplicate key: test/000000.tar: {name}") for line in verify(root).problems)


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 2, 2), np.float32)
    images[1, 0, 0, 0] = np.nan
    latents = Source(
        class_names=["all"],
        keys=["k0", "k1"],
        classes=np.zeros(2, int),
        shapes=np.tile((4, 2, 2), (2, 1)),
        dtype="float32",
        read=images.__getitem__,
        origin={},
        splits=np.full(2, "train"),
    )
    shard(latents, tmp_path / "out")
    told = "not finite: train/000000.tar: k1: the image has values that are not finite"
    assert verify(tmp_path / "out").problems == [told]


@pytest.fixture
def at_most_64_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdt.data.format.image.MAX_PICTURE_BYTES", 1 << 16)


@pytest.mark.usefixtures("at_most_64_kib")
@pytest.mark.parametrize("beside", ["txt", "flac", "images.bin", "features.npz"])
def test_files_beside_a_sample_may_be_large(tmp_path: Path, beside: str) -> None:
    many: list[tars.Entry] = [(f"k1.{number}.{beside}", bytes(1 << 15)) for number in range(4)]
    tar = tars.write_tar(tmp_path / "a.tar", [*tars.sample("k0"), *tars.sample("k1"), *many])
    index_shards([str(tar)], tmp_path / "out")
    assert verify(tmp_path / "out").problems == []


@pytest.mark.usefixtures("at_most_64_kib")
def test_bundles_may_be_larger_than_an_image(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 100, 100), dtype=np.uint8)
    source = Source(
        class_names=["a"],
        keys=[f"k{number}" for number in range(9)],
        classes=np.zeros(9, int),
        shapes=np.tile((1, 100, 100), (9, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(9, "train"),
    )
    shard(source, tmp_path, pack=True)
    with tarfile.open(first_tar(tmp_path)) as tar:
        assert tar.getmember("bundle-train-000000.images.npy").size > 9 * 100 * 100
    assert verify(tmp_path).problems == []


@pytest.mark.usefixtures("at_most_64_kib")
def test_an_image_above_the_limit_is_told(tmp_path: Path) -> None:
    large = tars.npy(np.zeros((1, 300, 300), np.uint8))
    tar = tars.write_tar(tmp_path / "a.tar", [("k.cls", b"0"), ("k.npy", large)])
    index_shards([str(tar)], tmp_path / "out")
    assert verify(tmp_path / "out").problems == ["too large: train/000000.tar: k: 90128 bytes; the limit is 65536"]


def test_without_an_index_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        verify(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no index\.json"):
        verify(tmp_path)
