"""What is damaged or hostile in a shard costs its samples and no others, and is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import images_by_key
from PIL import Image
from tars import member, npy, png, sample, write_tar
from webdataset.tariterators import base_plus_ext

from cdt.data.format.index import Index
from cdt.data.format.problems import NOT_SAMPLES
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.verify import verify
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
    if kind in NOT_SAMPLES:
        assert any(kind in line for line in index_shards([str(tmp_path / "in" / "a.tar")], tmp_path / "in")[1])
        return
    with pytest.raises(InputError, match=r"are more than --max-bad 0\.001 allows") as caught:
        index_shards([str(tmp_path / "in" / "a.tar")], tmp_path / "in")
    assert kind in str(caught.value)


def test_a_key_in_two_shards_and_an_empty_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", GOOD)
    write_tar(tmp_path / "b.tar", [*sample("g1"), *sample("other")])
    write_tar(tmp_path / "c.tar", [])
    _, notes = index_shards([str(tmp_path / "{a,b,c}.tar")], tmp_path, max_bad=0.5)
    assert notes == [
        "duplicate key: 1, as b.tar: g1 (--keys-by-shard makes keys unique)",
        f"empty shard: 1, as {tmp_path}/c.tar",
    ]
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


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ([("a.cls", b"\xef\xbb\xbf7"), ("a.png", png())], list("01234567")),
        ([("a.cls", "\uff17".encode()), ("a.png", png())], list("01234567")),
        ([("a.cls", b" 07\r\n"), ("a.png", png())], list("01234567")),
        ([("a.cls", "café".encode()), ("a.png", png())], ["café"]),
    ],
)
def test_labels_as_people_write_them(tmp_path: Path, members: list[tuple[str, bytes]], names: list[str]) -> None:
    index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert index.class_names == names
    assert index.class_names[index.classes[0]] == names[-1]
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(("label", "named"), [(b"1.0", "1"), (b"1", "1"), (b'"1"', "1")])
def test_labels_in_json_are_whole_numbers_or_words(tmp_path: Path, label: bytes, named: str) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.json", b'{"y": ' + label + b"}"), ("a.png", png())])
    index_shards([str(tar)], tmp_path / "out", class_field="y")
    index = Index.load(tmp_path / "out")
    assert index.class_names[index.classes[0]] == named
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize("label", [b"1.5", b"NaN", b"1e300", b"true", b"null", b"[1]"])
def test_other_labels_in_json_are_none(tmp_path: Path, label: bytes) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.json", b'{"y": ' + label + b"}"), ("a.png", png())])
    with pytest.raises(InputError, match=r"missing label: 1, as .*its json has no word or whole number 'y'"):
        index_shards([str(tar)], tmp_path / "out", class_field="y")


@pytest.mark.parametrize("label", [2**64 - 1, -3])
def test_labels_in_json_may_be_hashes(tmp_path: Path, label: int) -> None:
    members = [("a.json", f'{{"y": {label}}}'.encode()), ("a.png", png()), ("b.json", b'{"y": "x"}'), ("b.png", png())]
    index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out", class_field="y")
    assert str(label) in Index.load(tmp_path / "out").class_names
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize("label", ["1" * 301, f"-{'9' * 25}", str(2**64)])
def test_numbers_beyond_64_bits_are_no_labels(tmp_path: Path, label: str) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.json", f'{{"y": {label}}}'.encode()), ("a.png", png())])
    with pytest.raises(InputError, match=r"wrong label: 1, as .*: its y is out of range: a whole number of more than"):
        index_shards([str(tar)], tmp_path / "out", class_field="y")


def test_a_number_that_is_written_in_several_ways_is_one_class_and_told(tmp_path: Path) -> None:
    labels = [b"007", b"7", b"\xef\xbc\x97", b"08", b"08", b"cat"]
    members = [(f"{n}.{ext}", x) for n, label in enumerate(labels) for ext, x in (("cls", label), ("png", png()))]
    _, notes = index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out")
    assert notes == ["classes whose number is written in several ways: 1: 7 as 007 and 7 and \uff17"]
    index = Index.load(tmp_path / "out")
    assert [index.class_names[number] for number in index.classes] == ["7", "7", "7", "8", "8", "cat"]
    assert verify(tmp_path / "out").problems == []


def test_keys_are_those_of_webdataset(tmp_path: Path) -> None:
    """./a.png and a.cls are files of two samples for it."""
    tar = write_tar(tmp_path / "a.tar", [("./a.png", png()), ("a.cls", b"0")])
    theirs = [base_plus_ext(name)[0] for name in ("./a.png", "a.cls")]
    assert theirs == ["./a", "a"]
    with pytest.raises(InputError, match=r"missing label: 1, as .*: \./a: .*\n.*missing image: 1, as .*: a: "):
        index_shards([str(tar)], tmp_path / "out")
    same = write_tar(tmp_path / "b.tar", [("./a.png", png()), ("./a.cls", b"0")])
    index_shards([str(same)], tmp_path / "out")
    assert Index.load(tmp_path / "out").keys() == ["./a"]


def test_a_key_ends_at_the_first_dot_and_the_message_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.b.cls", b"0"), ("a.b.png", png())])
    with pytest.raises(
        InputError, match=r"missing label: .*it has no cls; note that a key ends at the first dot .*a\.b\."
    ):
        index_shards([str(tar)], tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["._g0.png", "x/._g0.png", ".DS_Store", "__MACOSX/x/._g0.png", "README", "x/.hidden/a.png"]
)
def test_files_beside_the_samples_are_named_and_cost_nothing(tmp_path: Path, name: str) -> None:
    tar = write_tar(tmp_path / "a.tar", [(name, b"?"), *GOOD])
    _, notes = index_shards([str(tar)], tmp_path / "out")
    assert Index.load(tmp_path / "out").count == 4
    assert any(name in note for note in notes)
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("compress", "remedy"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")]
)
def test_compressed_tars_are_refused_with_the_remedy(
    tmp_path: Path, compress: Callable[[bytes], bytes], remedy: str
) -> None:
    tar = write_tar(tmp_path / "a.tar", GOOD)
    tar.write_bytes(compress(tar.read_bytes()))
    with pytest.raises(InputError, match=rf"a\.tar is compressed \(\w+\), .*: `{remedy}` it first"):
        index_shards([str(tar)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_utf8_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, content in (("\u00e9.png", png()), ("\u00e8.cls", b"1"), ("good.cls", b"0"), ("good.png", png())):
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    _, notes = index_shards([str(tmp_path / "a.tar")], tmp_path / "out", max_bad=0.7)
    assert Index.load(tmp_path / "out").keys() == ["good"]
    assert notes[0].startswith("refused: name is not UTF-8: 2, as ")


def test_attributes_that_are_not_everywhere_are_left_out_and_named(tmp_path: Path) -> None:
    records = [
        {"whole": 1, "nan": 1.5, "big": 1, "rare": 1, "word": "x", "mixed": 1},
        {"whole": 2, "nan": float("nan"), "big": 2**60, "word": "y", "mixed": "two"},
    ]
    members = [
        entry
        for number, record in enumerate(records)
        for entry in (
            (f"k{number}.cls", b"0"),
            (f"k{number}.png", png()),
            (f"k{number}.json", json.dumps(record).encode()),
        )
    ]
    _, notes = index_shards([str(write_tar(tmp_path / "a.tar", members))], tmp_path / "out")
    assert list(Index.load(tmp_path / "out").attributes) == ["whole"]
    assert notes == [
        "attribute big is left out: 1 of 2 samples have no number there, as k1 has a whole number beyond 2^53",
        "attribute mixed is left out: 1 of 2 samples have no number there, as k1 has no number there",
        "attribute nan is left out: 1 of 2 samples have no number there, as k1 has nan",
        "attribute rare is left out: 1 of 2 samples have no number there",
        "fields of json that are left out, as they are no numbers: word",
    ]


def test_an_array_whose_shape_is_no_numbers_is_one_bad_sample(tmp_path: Path) -> None:
    """`True` passes for 1 until numpy reshapes."""
    array = npy(np.zeros((1, 6, 5), np.uint8))
    odd = array.replace(b"(1, 6, 5), }   ", b"(True, 6, 5), }")
    assert len(odd) == len(array)
    assert odd != array
    tar = write_tar(tmp_path / "a.tar", [("a.cls", b"0"), ("a.npy", odd), ("b.cls", b"0"), ("b.npy", array)])
    _, notes = index_shards([str(tar)], tmp_path / "out", max_bad=0.5)
    assert "expected [C, H, W]" in notes[0]
    assert Index.load(tmp_path / "out").keys() == ["b"]


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
