"""Shards of others: indexed where they are, side by side, again after an interruption; what is wrong has a name."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from server import Server, serve
from tars import member, npy, png, sample, write_tar
from webdataset.writer import TarWriter

from cdt.cli.command import main
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.inspect import foreign
from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.places import expand, most_places
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.stream import MixtureStream
from cdt.dual import Draws
from cdt.errors import InputError


def pure_shards(root: Path, classes: int = 6, each: int = 20) -> list[str]:
    """One class in each, written by webdataset itself; the grey of an image is its number."""
    root.mkdir(parents=True, exist_ok=True)
    for label in range(classes):
        with TarWriter(str(root / f"x-{label:03d}.tar")) as tar:
            for number in range(each):
                value = label * each + number
                record = {"age": value / 7, "male": value % 2, "name": f"n{label}", "caption": "?"}
                payload = {"png": png(value), "cls": str(label).encode(), "json": json.dumps(record).encode()}
                tar.write({"__key__": f"some/folder/{value:04d}", **payload})
    return [str(root / f"x-{{000..{classes - 1:03d}}}.tar")]


def images_by_key(index: Index) -> dict[str, int]:
    images = ImageReader(index, 0).images(np.arange(index.count))
    return dict(zip(index.keys(), images[:, 0, 0, 0].tolist(), strict=True))


def test_shards_elsewhere_are_read_where_they_are(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    header, notes = index_shards(
        pure_shards(tmp_path / "theirs"), tmp_path / "out", progress=lambda *step: told.append(step)
    )
    assert notes == []
    assert told == [(done, 6) for done in range(1, 7)]
    index = Index.load(tmp_path / "out")
    index.check_sizes()
    assert (index.shape, index.dtype, index.class_names) == ((1, 6, 5), "uint8", [str(c) for c in range(6)])
    assert header.order == index.order == "stratified"
    assert index.class_counts.tolist() == [20] * 6
    assert sorted(index.attributes) == ["age", "male"]
    assert images_by_key(index) == {f"some/folder/{value:04d}": value for value in range(120)}
    assert index.attributes["age"].tolist() == pytest.approx([value / 7 for value in range(120)], rel=1e-6)
    assert verify(tmp_path / "out").problems == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.arrow", "index.json", "train"]


def test_an_index_beside_its_shards_names_them_as_they_are(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    index = Index.load(tmp_path)
    assert [info.name for info in index.shards] == [f"x-{label:03d}.tar" for label in range(6)]
    assert not list(tmp_path.glob("*/*"))
    assert len(images_by_key(index)) == 120


def test_training_asks_for_the_index_in_one_line(tmp_path: Path) -> None:
    pure_shards(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path} has shards but no index.json: `cdt index '{tmp_path}'/\*"):
        Index.load(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path) as server:
        yield server


def test_shards_at_urls(tmp_path: Path, server: Server) -> None:
    pure_shards(tmp_path / "theirs")
    index_shards([f"{server.url}/theirs/x-{{000..005}}.tar"], tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert (index.base, index.shards[2].name) == (f"{server.url}/theirs", "x-002.tar")
    assert len(set(images_by_key(index).values())) == 120


def test_class_pure_shards_give_mixed_batches(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    index = Index.load(tmp_path)
    stream = MixtureStream(
        DataConfig(shards=str(tmp_path)),
        index,
        {},
        index.classes.astype(np.int64),
        lambda lambdas: Draws(np.ones(1), np.ones(1), np.ones(6)),
        lambdas=np.zeros(0),
        batch_size=24,
        seed=0,
    )
    counts = torch.stack([torch.bincount(next(stream).cells, minlength=6) for _ in range(20)])
    assert (counts - 4).abs().max() <= 1


def test_labels_from_json_become_class_names(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path, class_field="name")
    assert Index.load(tmp_path).class_names == [f"n{label}" for label in range(6)]


def test_images_of_many_sizes_need_a_size(tmp_path: Path) -> None:
    members = [
        entry
        for number, (height, width, channels) in enumerate([(9, 20, 1), (30, 8, 3), (8, 8, 3)])
        for entry in ((f"k{number}.cls", b"0"), (f"k{number}.png", png(200, height, width, channels)))
    ]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"images of 3 shapes .* as 1 x 9 x 20 and 3 x .*; --resize N"):
        index_shards([str(tmp_path / "a.tar")], tmp_path)
    index_shards([str(tmp_path / "a.tar")], tmp_path, resize=4)
    images = ImageReader(Index.load(tmp_path), 0).images(np.arange(3))
    assert images.shape == (3, 3, 4, 4)
    assert (images == 200).all()


def test_an_interruption_does_not_cost_what_was_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = pure_shards(tmp_path / "theirs")
    scan_tar, scanned = foreign.scan_tar, []

    def counting(path: Path, name: str, class_field: str | None) -> foreign.Scan:
        if len(scanned) == 4:
            raise KeyboardInterrupt
        scanned.append(name)
        return scan_tar(path, name, class_field)

    monkeypatch.setattr(foreign, "scan_tar", counting)
    with pytest.raises(KeyboardInterrupt):
        index_shards(places, tmp_path / "out")
    monkeypatch.setattr(foreign, "scan_tar", lambda *arguments: scanned.append(arguments[1]) or scan_tar(*arguments))
    index_shards(places, tmp_path / "out")
    assert len(scanned) == 6
    assert len(images_by_key(Index.load(tmp_path / "out"))) == 120


def test_lists_and_braces(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a-{0..2}.tar\n\nhttp://h/b.tar\n")
    assert expand([f"@{tmp_path}/list.txt", "c.tar"]) == ["a-0.tar", "a-1.tar", "a-2.tar", "http://h/b.tar", "c.tar"]
    for wrong, told in ((["a", "a"], "named 2 times"), ([f"@{tmp_path}/no"], "no such file"), (["pipe:ls"], "pipe:")):
        with pytest.raises(InputError, match=told):
            expand(wrong)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", *pure_shards(tmp_path / "theirs"), str(tmp_path / "out")]) == 0
    assert "out: 120 samples in 6 shards" in capsys.readouterr().out
    assert main(["index", str(tmp_path / "no.tar"), str(tmp_path / "other")]) == 2


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


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "train/../../x.tar"])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["splits"]["train"]["shards"][0]["name"] = name
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="lies outside the directory"):
        Index.load(tmp_path)


@pytest.mark.parametrize("base", ["file:///etc", "pipe:rm -rf x", "/etc", "ftp://h/x"])
def test_a_base_is_a_url_of_a_known_kind(tmp_path: Path, base: str) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(header | {"base": base}))
    with pytest.raises(InputError, match=r"its base .* is none of http://"):
        Index.load(tmp_path)


def test_an_index_of_brackets_is_one_line(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    (tmp_path / "index.json").write_text("[" * 300_000)
    with pytest.raises(InputError, match=r"^[^\n]*is not a valid index[^\n]*$"):
        Index.load(tmp_path)


def test_what_pillow_calls_a_palette_is_colour(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 5), np.uint8)).convert("P").save(buffer, "PNG")
    write_tar(tmp_path / "a.tar", [("k.png", buffer.getvalue()), ("k.cls", b"1")])
    index_shards([str(tmp_path / "a.tar")], tmp_path)
    assert ImageReader(Index.load(tmp_path), 0).images(np.arange(1)).shape == (1, 3, 6, 5)


@pytest.mark.parametrize(("number", "value"), [("bytes", 10**30), ("bytes", -1), ("count", 2**70)])
def test_absurd_numbers_in_an_index_are_one_line(tmp_path: Path, number: str, value: int) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["splits"]["train"]["shards"][0][number] = value
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"^[^\n]*is not a valid index: split train: [^\n]*$"):
        Index.load(tmp_path)


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.5])
def test_a_share_of_bad_samples_is_a_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match=r"--max-bad: .* is no share; expected 0 to 1"):
        index_shards(pure_shards(tmp_path), tmp_path, max_bad=share)


def test_shards_of_others_are_verified_as_they_were_indexed(tmp_path: Path) -> None:
    """Labels by name from json, jpeg, and images that are resized as they are read; a damage is still found."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 8), 7, np.uint8)).save(buffer, "JPEG")
    entries = [
        entry
        for number in range(4)
        for entry in (
            (f"k{number}.jpeg", buffer.getvalue()),
            (f"k{number}.json", json.dumps({"name": "cat" if number % 2 else "dog", "age": number / 2}).encode()),
        )
    ]
    tar = write_tar(tmp_path / "a.tar", entries)
    index_shards([str(tar)], tmp_path / "out", class_field="name", resize=4)
    assert verify(tmp_path / "out").problems == []
    tar.write_bytes(tar.read_bytes().replace(b'"dog"', b'"cow"', 1))
    problems = verify(tmp_path / "out").problems
    assert "wrong label: train/000000.tar: k0: 'cow' instead of 'dog'" in problems


def test_shards_in_out_are_never_replaced_by_links(tmp_path: Path) -> None:
    inside = write_tar(tmp_path / "out" / "train" / "000000.tar", sample("a"))
    before = inside.read_bytes()
    elsewhere = write_tar(tmp_path / "more.tar", sample("b"))
    for urls in ([str(inside), str(elsewhere)], [str(elsewhere)]):
        with pytest.raises(InputError, match=r"000000\.tar stands where a link would; name an OUT of its own"):
            index_shards(urls, tmp_path / "out")
        assert inside.read_bytes() == before
        assert not inside.is_symlink()


def test_one_file_by_two_paths_is_named_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a"))
    (tmp_path / "b.tar").symlink_to(path)
    with pytest.raises(InputError, match=r"a\.tar is named 2 times, by different paths"):
        index_shards([str(path), str(tmp_path / "b.tar")], tmp_path, max_bad=1)


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("x.tar", 1),
        ("{000..099}.tar", 100),
        ("{a,b{1..3}}-{0..9}.tar", 40),
        ("{train-{000..999},val-{000..999}}.tar", 2000),
        ("{a..c}{3..1}", 9),
        ("a{b}c", 1),
        ("a{}b", 1),
    ],
)
def test_braces_are_counted_before_they_are_expanded(pattern: str, places: int) -> None:
    assert most_places(pattern) == places
    assert len(expand([pattern])) == places


@pytest.mark.parametrize(
    "pattern", ["{0..9}" * 9, "{0..2000000000}", "{a,x{0..999}{0..999}{0..999}}", "{1..999999999999999999}" * 9]
)
def test_a_bomb_of_braces_is_one_line(pattern: str) -> None:
    with pytest.raises(InputError, match="stands for more than 1,000,000 shards"):
        expand([pattern])


@pytest.mark.parametrize("pattern", ["{a,b", "{" * 3000 + "a,b" + "}" * 3000])
def test_braces_that_cannot_be_read(pattern: str) -> None:
    with pytest.raises(InputError, match="its braces cannot be read"):
        expand([pattern])


def test_lists_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"a.tar\n@{file}\n")
    with pytest.raises(InputError, match="names another list"):
        expand([f"@{file}"])
    file.write_bytes(b"\xff\xfea.tar")
    with pytest.raises(InputError, match="is no list in UTF-8"):
        expand([f"@{file}"])
    file.write_bytes(b"\xef\xbb\xbfa.tar\r\n\r\n  b.tar \r\n")
    assert expand([f"@{file}"]) == ["a.tar", "b.tar"]


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


def test_an_attribute_without_a_name_that_can_be_written_is_left_out(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*sample("a"), ("a.json", json.dumps({"x": 1, "a\ud800": 1}).encode())])
    index_shards([str(tar)], tmp_path / "out")
    assert list(Index.load(tmp_path / "out").attributes) == ["x"]


def test_no_index_of_images_that_are_too_large(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("a"))
    with pytest.raises(InputError, match="more than 67,108,864 values"):
        index_shards([str(tar)], tmp_path / "out", resize=10_000)


@pytest.mark.parametrize("path", ["//a.tar", "d//e/a.tar", "d/../a.tar"])
def test_urls_that_no_index_could_name(tmp_path: Path, server: Server, path: str) -> None:
    other = f"{server.url}/theirs/x-000.tar"
    target = (tmp_path / path.lstrip("/")).resolve()
    (tmp_path / "d").mkdir()
    write_tar(target, sample("a"))
    write_tar(tmp_path / "theirs" / "x-000.tar", sample("b"))
    with pytest.raises(InputError, match=r"a folder of its path is empty or \.\.; name it without"):
        index_shards([f"{server.url}/{path}", other], tmp_path / "out")


def test_a_shard_that_changed_at_its_url_is_scanned_anew(tmp_path: Path, server: Server) -> None:
    url = f"{server.url}/theirs/x-000.tar"
    pure_shards(tmp_path / "theirs")
    index_shards([url], tmp_path / "one")
    write_tar(tmp_path / "theirs" / "x-000.tar", [entry for n in range(20) for entry in sample(f"k{n}", value=n)])
    size = (tmp_path / "theirs" / "x-000.tar").stat().st_size
    assert Index.load(tmp_path / "one").shards[0].bytes >= size
    with (tmp_path / "theirs" / "x-000.tar").open("ab") as file:
        file.truncate(Index.load(tmp_path / "one").shards[0].bytes)
    index_shards([url], tmp_path / "two", max_bad=1)
    assert Index.load(tmp_path / "two").keys()[0] == "k0"


def test_a_resumed_scan_fetches_nothing_again(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/theirs/x-000.tar"
    pure_shards(tmp_path / "theirs")
    monkeypatch.setattr(foreign, "write_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index_shards([url], tmp_path / "out")
    monkeypatch.undo()
    sent = server.sent
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "another"))
    index_shards([url], tmp_path / "out")
    assert server.sent - sent == 1
