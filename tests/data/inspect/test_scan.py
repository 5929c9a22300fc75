"""What is damaged or hostile in a shard costs its samples and no others, and is named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import images_by_key
from PIL import Image
from tars import member, npy, png, sample, write_tar

from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.data.read.reader import ImageReader
from cdt.errors import InputError

GOOD = [entry for number in range(4) for entry in sample(f"g{number}", value=number)]


def spoil_header(path: Path, number: int) -> None:
    """The header of the tar's member of this number."""
    with tarfile.open(path) as tar:
        place = tar.getmembers()[number].offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def tar_with(*extra: tuple[str, bytes] | tarfile.TarInfo) -> Callable[[Path], object]:
    return lambda path: write_tar(path, [*GOOD[:4], *extra, *GOOD[4:]])


def then(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        write_tar(path, GOOD)
        change(path)

    return apply


HOSTILE: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "a damaged header of an image": (then(lambda p: spoil_header(p, 3)), "damaged header", 3),
    "a damaged header of a label": (then(lambda p: spoil_header(p, 2)), "damaged header", 3),
    "an end within a header": (then(lambda p: truncate(p, 512 * 13 + 100)), "truncated tar", 3),
    "an end within an image": (then(lambda p: truncate(p, 512 * 15 + 20)), "truncated tar", 3),
    "an end between two samples": (then(lambda p: truncate(p, 512 * 12)), "truncated tar", 3),
    "zeros in the middle": (
        then(lambda p: p.write_bytes(p.read_bytes()[:2048] + bytes(2048) + p.read_bytes()[4096:])),
        "zeros within the tar",
        3,
    ),
    "a missing label": (tar_with(("x.png", png())), "missing label", 4),
    "a missing image": (tar_with(("x.cls", b"0")), "missing image", 4),
    "an empty label": (tar_with(("x.cls", b""), ("x.png", png())), "wrong label", 4),
    "control sequences for a label": (tar_with(("x.cls", b"\x1b[2J"), ("x.png", png())), "wrong label", 4),
    "bytes for a label": (tar_with(("x.cls", b"\xff\xfe"), ("x.png", png())), "wrong label", 4),
    "interleaved keys": (
        tar_with(("x.cls", b"0"), ("y.cls", b"0"), ("x.png", png()), ("y.png", png())),
        "half sample",
        4,
    ),
    "two images": (tar_with(("x.cls", b"0"), ("x.png", png()), ("x.jpg", b"?")), "several images", 4),
    "no image at all": (tar_with(("x.cls", b"0"), ("x.png", b"MZ")), "damaged image", 4),
    "an empty image": (tar_with(("x.cls", b"0"), ("x.png", b"")), "damaged image", 4),
    "a flipped bit": (
        tar_with(("x.cls", b"0"), ("x.png", png()[:50] + b"\xff" + png()[51:])),
        "damaged image",
        4,
    ),
    "a decompression bomb": (
        tar_with(("x.cls", b"0"), ("x.png", png()[:16] + b"\x00\x00\x75\x30" * 2 + png()[24:])),
        "damaged image",
        4,
    ),
    "a pickle": (tar_with(("x.cls", b"0"), ("x.pkl", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")), "missing image", 4),
    "a pickle in an array": (
        tar_with(("x.cls", b"0"), ("x.npy", npy(np.array([[[{}]]], dtype=object)))),
        "damaged image",
        4,
    ),
    "python": (tar_with(("x.cls", b"0"), ("x.py", b"import os"), ("x.pth", b"?")), "missing image", 4),
    "an absolute path": (tar_with(("/etc/x.png", png())), "refused: path leads outside", 4),
    "a path upwards": (tar_with(("../../x.png", png())), "refused: path leads outside", 4),
    "a symbolic link": (tar_with(member("x.png", tarfile.SYMTYPE, "/etc/passwd")), "refused: no plain file", 4),
    "a hard link": (tar_with(member("x.png", tarfile.LNKTYPE, "../../etc/passwd")), "refused: no plain file", 4),
    "a device": (tar_with(member("x.png", tarfile.CHRTYPE)), "refused: no plain file", 4),
    "a pipe": (tar_with(member("x.png", tarfile.FIFOTYPE)), "refused: no plain file", 4),
    "nested json": (
        tar_with(("x.cls", b"0"), ("x.png", png()), ("x.json", b"[" * 200_000)),
        "damaged json",
        4,
    ),
    "a long json": (tar_with(("x.cls", b"0"), ("x.png", png()), ("x.json", b" " * 2_000_000)), "too large", 4),
    "a key twice": (tar_with(*sample("g0")), "half sample", 3),
    "a file twice": (tar_with(("x.cls", b"0"), ("x.png", png()), ("x.png", png())), "duplicate file", 5),
    "no extension": (tar_with(("README", b"?")), "file without extension", 4),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_shard_costs_what_is_hostile_and_no_more(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is named; nothing runs, nothing is written or read elsewhere; the samples around it stay."""
    write, kind, stay = HOSTILE[damage]
    write(tmp_path / "in" / "a.tar")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    _, notes = index_shards([str(tmp_path / "in" / "a.tar")], tmp_path / "in", max_bad=1.0)
    assert any(line.startswith(f"{kind}: ") for line in notes), notes
    assert all(line.isprintable() for line in notes)
    index = Index.load(tmp_path / "in")
    assert index.count == stay
    if damage != "a file twice":
        values = images_by_key(index)
        assert all(values[f"g{value}"] == value for value in values.values() if f"g{value}" in values)
        assert set(values) <= {f"g{number}" for number in range(4)}
    after = set(tmp_path.rglob("*")) - set(before)
    assert {path.name for path in after} == {"index.json", "index.arrow"}
    assert not Path("/tmp/owned").exists()
    (tmp_path / "in/index.json").unlink()
    with pytest.raises(InputError, match=r"are more than --max-bad 0\.001 allows") as caught:
        index_shards([str(tmp_path / "in" / "a.tar")], tmp_path / "in")
    assert kind in str(caught.value)


def test_a_key_in_two_shards_and_an_empty_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", GOOD)
    write_tar(tmp_path / "b.tar", [*sample("g1"), *sample("other")])
    write_tar(tmp_path / "c.tar", [])
    _, notes = index_shards([str(tmp_path / "{a,b,c}.tar")], tmp_path, max_bad=0.5)
    assert notes == ["duplicate key: 1, as b.tar: g1", f"empty shard: 1, as {tmp_path}/c.tar"]
    index = Index.load(tmp_path)
    assert [info.count for info in index.shards] == [4, 1, 0]
    assert len(images_by_key(index)) == 5


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_each_format(tmp_path: Path, tar_format: int) -> None:
    key = "/".join(["folder" * 8] * 3) + "/k"
    write_tar(tmp_path / "a.tar", [*sample(key), *sample("plain", value=7)], tar_format)
    index_shards([str(tmp_path / "a.tar")], tmp_path)
    assert images_by_key(Index.load(tmp_path)) == {key: 0, "plain": 7}


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_header_without_data_hides_nothing(tmp_path: Path, kind: bytes) -> None:
    tar = write_tar(tmp_path / "a.tar", [*sample("a"), *sample("b")])
    odd = member("odd", kind, "a.png" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else "")
    odd.size = 4 * 512
    content = tar.read_bytes()
    tar.write_bytes(content[: 4 * 512] + odd.tobuf(tarfile.GNU_FORMAT) + content[4 * 512 :])
    index_shards([str(tar)], tmp_path / "out", max_bad=1)
    assert Index.load(tmp_path / "out").keys() == ["a", "b"]


def test_images_that_cannot_be_used_are_told_by_the_scan(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (5, 6)).save(buffer, "PNG")
    tar = write_tar(tmp_path / "a.tar", [("a.cls", b"0"), ("a.png", buffer.getvalue())])
    with pytest.raises(InputError, match=r"damaged image: 1, as .*the image has transparency"):
        index_shards([str(tar)], tmp_path / "out")


def test_what_pillow_calls_a_palette_is_colour(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 5), np.uint8)).convert("P").save(buffer, "PNG")
    write_tar(tmp_path / "a.tar", [("k.png", buffer.getvalue()), ("k.cls", b"1")])
    index_shards([str(tmp_path / "a.tar")], tmp_path)
    assert ImageReader(Index.load(tmp_path), 0).images(np.arange(1)).shape == (1, 3, 6, 5)


def test_an_attribute_without_a_name_that_can_be_written_is_left_out(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*sample("a"), ("a.json", json.dumps({"x": 1, "a\ud800": 1}).encode())])
    index_shards([str(tar)], tmp_path / "out")
    assert list(Index.load(tmp_path / "out").attributes) == ["x"]
