from __future__ import annotations

import gzip
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdt.data.format.damage import BadDataError
from cdt.data.format.header import SAFE_NAME
from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.sources import SOURCES, Source
from cdt.data.sources.attributes import read_attributes
from cdt.data.sources.folder import open_folder, safe_keys
from cdt.data.sources.idx import open_idx
from cdt.data.write.shard import shard
from cdt.errors import InputError


def check_protocol(source: Source) -> None:
    """What holds for every source."""
    N = len(source)
    assert len(source.keys) == len(set(source.keys)) == len(source.classes) == len(source.splits) == N
    assert all(SAFE_NAME.fullmatch(key) for key in source.keys)
    assert source.shapes.shape == (N, 3)
    assert source.classes.min() >= 0
    assert source.classes.max() < len(source.class_names)
    for position in (0, N // 2, N - 1):
        record = source[position]
        assert record.image.shape == tuple(source.shapes[position])
        assert record.image.dtype == source.dtype
        assert (record.key, record.class_index) == (source.keys[position], source.classes[position])
        assert record.attributes == {name: values[position] for name, values in source.attributes.items()}


def test_digits() -> None:
    digits = SOURCES["digits"]()
    check_protocol(digits)
    assert len(digits) == 1797
    assert np.bincount(digits.classes).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = np.stack([digits.read(position) for position in range(1797)])
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    assert digits.keys[123] == "digits-000123"


# IDX


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 2, 1, 0], np.uint8)


def write_idx(directory: Path, prefix: str = "train", mark: str = "-", packed: bool = False) -> Path:
    for name, array in (("images", IMAGES), ("labels", LABELS)):
        file = f"{prefix}-{name}{mark}idx{array.ndim}-ubyte" + ".gz" * packed
        (directory / file).write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    return directory


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_files_plain_and_packed(tmp_path: Path, packed: bool, mark: str) -> None:
    source = open_idx(write_idx(tmp_path, mark=mark, packed=packed))
    check_protocol(source)
    assert source.class_names == ["0", "1", "2", "3"]
    assert source.classes.tolist() == LABELS.tolist()
    assert set(source.splits) == {"train"}
    np.testing.assert_array_equal(np.stack([source.read(position) for position in range(7)])[:, 0], IMAGES)


def test_t10k_becomes_the_split_test(tmp_path: Path) -> None:
    source = open_idx(write_idx(write_idx(tmp_path), "t10k", packed=True))
    check_protocol(source)
    assert source.splits.tolist() == ["train"] * 7 + ["test"] * 7
    assert (source.keys[0], source.keys[7]) == ("idx-train-000000", "idx-test-000000")
    np.testing.assert_array_equal(source.read(9)[0], IMAGES[2])


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda directory: (directory / "train-images-idx3-ubyte").unlink(),
            "has no train images: looked for train-images-idx3-ubyte, train-images.idx3-ubyte, train-images-idx3-",
        ),
        (
            lambda directory: (directory / "train-labels-idx1-ubyte").unlink(),
            "has no train labels: looked for train-lab",
        ),
        (overwrite("t10k-labels-idx1-ubyte", idx_bytes(LABELS)), "has no test images: looked for t10k-images-idx3"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(LABELS)), "begins with 00000801 instead of 00000803"),
        (overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS)[:-1]), "is truncated: its header promises 7 bytes"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES)[:-1]), "is truncated: its header promises 7 x 4 x 5"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES) + b"x"), "is longer than it says"),
        (overwrite("train-images-idx3-ubyte", b""), "begins with nothing instead of 00000803"),
        (overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES)[:9]), "is truncated: it ends in its header"),
        (overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS[:5])), "7 images and 5 labels in the split train"),
        (overwrite("train-images-idx3-ubyte", struct.pack(">4I", 2051, *[2**32 - 1] * 3)), "is truncated"),
        (lambda directory: [path.unlink() for path in directory.iterdir()], "has no train images"),
    ],
)
def test_wrong_idx_files_are_told(tmp_path: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(write_idx(tmp_path))
    with pytest.raises(InputError, match=told):
        open_idx(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(idx_bytes(IMAGES)[:-1]), "is truncated"),
        (gzip.compress(idx_bytes(IMAGES) + b"x"), "is longer than it says"),
        (gzip.compress(idx_bytes(IMAGES))[:-12], "cannot be read"),
        (gzip.compress(struct.pack(">4I", 2051, *[2**32 - 1] * 3)), "is truncated"),
        (b"not packed at all", "cannot be read"),
    ],
)
def test_wrong_packed_idx_files_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    write_idx(tmp_path, packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match=told):
        open_idx(tmp_path)


def test_idx_files_without_records(tmp_path: Path) -> None:
    overwrite("train-images-idx3-ubyte", idx_bytes(IMAGES[:0]))(tmp_path)
    overwrite("train-labels-idx1-ubyte", idx_bytes(LABELS[:0]))(tmp_path)
    with pytest.raises(InputError, match="hold no images"):
        open_idx(tmp_path)


# Folders


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), colour: Any = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/10.JPG",
        "b/deep/er/x y.webp",
        "a/ü.bmp",
        "a/1.tiff",
        "empty/.hidden.png",
        ".git/no.png",
    ):
        save(tmp_path / name)
    (tmp_path / "a/readme.txt").touch()
    (tmp_path / "notes.md").touch()
    source = open_folder(tmp_path)
    check_protocol(source)
    assert source.class_names == ["a", "b", "empty"]
    assert source.paths == ["a/1.tiff", "a/ü.bmp", "b/10.JPG", "b/2.png", "b/deep/er/x y.webp"]
    assert source.classes.tolist() == [0, 0, 1, 1, 1]
    assert source.shapes.tolist() == [[3, 4, 6]] * 5
    assert source.notes == [
        "left out, as no images by their names: notes.md, a/readme.txt",
        "left out, as hidden or of the operating system: .git, empty/.hidden.png",
        "classes without images: empty",
    ]


def test_grey_pictures_stay_grey_until_one_is_coloured(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", "L", colour=7)
    save(tmp_path / "a/2.png", "1", colour=1)
    save(tmp_path / "a/3.png", "LA", colour=(9, 255))
    grey = open_folder(tmp_path)
    check_protocol(grey)
    assert [grey.read(position)[:, 0, 0].tolist() for position in range(3)] == [[7], [255], [9]]
    save(tmp_path / "a/4.png", "RGB", colour=(1, 2, 3))
    coloured = open_folder(tmp_path)
    check_protocol(coloured)
    assert [coloured.read(position)[:, 0, 0].tolist() for position in (0, 3)] == [[7, 7, 7], [1, 2, 3]]
    assert coloured.notes == [
        "grey images that get three equal channels, as others are coloured: 3",
        "images with transparency, which becomes white: 1",
    ]


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0))])
def test_transparency_becomes_white(tmp_path: Path, mode: str, clear: tuple[int, ...]) -> None:
    save(tmp_path / "a/1.png", mode, colour=clear)
    assert (open_folder(tmp_path).read(0) == 255).all()


def test_a_transparent_palette_becomes_white(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    plain = Image.new("RGB", (6, 4), (9, 9, 9)).quantize(2)
    plain.save(tmp_path / "a/1.png", transparency=plain.getpixel((0, 0)))
    source = open_folder(tmp_path)
    check_protocol(source)
    assert (source.read(0) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a/1.jpg", size=(16, 8), exif=exif)
    source = open_folder(tmp_path)
    check_protocol(source)
    assert source.shapes.tolist() == [[3, 16, 8] if orientation >= 5 else [3, 8, 16]]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda root: None, "has no class folders; expected DIR/<class name>/<image>"),
        (lambda root: (root / "a").mkdir(), "has no images; looked in its folders for .png, .jpg"),
        (lambda root: save(root / "1.png"), "1.png lie outside of any class"),
        (
            lambda root: [save(root / split / "a/1.png") for split in ("train", "test")],
            "folders test, train, which are spl",
        ),
    ],
)
def test_other_layouts_and_images_are_told(tmp_path: Path, build: Callable[[Path], object], told: str) -> None:
    build(tmp_path)
    with pytest.raises(InputError, match=told):
        open_folder(tmp_path)


def test_no_directory(tmp_path: Path) -> None:
    for name in ("idx", "folder"):
        with pytest.raises(InputError, match=r"no such directory: .*nowhere"):
            SOURCES[name](tmp_path / "nowhere")


def test_unreadable_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    save(tmp_path / "a/0.png")
    for number in range(1, 6):
        (tmp_path / f"a/{number}.png").write_bytes(b"no image")
    source = open_folder(tmp_path)
    assert source.paths == ["a/0.png"]
    assert source.problems.counts == {"damaged image": 5}
    refused = (
        r"5 problems beside 1 usable samples are more than --max-bad 0.001 allows:\n  damaged image: 5, as a/1.png: "
    )
    with pytest.raises(InputError, match=refused):
        shard(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = shard(source, tmp_path / "out", max_bad=0.9)
    assert summary.notes[0].startswith(
        "damaged image: 5, as a/1.png: it is no or a damaged PNG, JPEG, WEBP, BMP or TIFF"
    )
    assert summary.header.splits["train"].count == 1


def test_links_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "in/a/1.png")
    save(tmp_path / "elsewhere/2.png")
    save(tmp_path / "elsewhere/deep/3.png")
    (tmp_path / "in/a/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a/another").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/loop").symlink_to(tmp_path / "in/a")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere/deep")
    source = open_folder(tmp_path / "in")
    check_protocol(source)
    assert source.paths == ["a/1.png", "a/another/2.png", "a/another/deep/3.png", "b/3.png", "b/loop/1.png", *B_AGAIN]
    (note,) = source.notes
    repeated = "a/another/deep/loop, a/link, b/loop/another/deep and 1 more"
    assert note == f"left out, as links to folders that are read already: {repeated}"


B_AGAIN = ["b/loop/another/2.png"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.symlink_to("nowhere"), "unreadable file: 1, as a/2.png: No such file or directory"),
        (lambda path: path.symlink_to(path), "unreadable file: 1, as a/2.png: Too many levels of symbolic links"),
        (os.mkfifo, "unreadable file: 1, as a/2.png: it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "unreadable file: 1, as a/2.png: it is no regular file"),
        (lambda path: path.touch() or os.truncate(path, 1 << 27), "too large: 1, as a/2.png: 134217728 bytes"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    save(tmp_path / "in/a/1.png")
    make(tmp_path / "in/a/2.png")
    with pytest.raises(InputError, match=told):
        shard(open_folder(tmp_path / "in"), tmp_path / "out")
    assert shard(open_folder(tmp_path / "in"), tmp_path / "out", max_bad=0.5).header.splits["train"].count == 1


def test_a_class_that_is_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"links that lead nowhere: b$"):
        open_folder(tmp_path)


def test_folders_a_thousand_deep(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    here = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        here, before = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(here)
    try:
        assert open_folder(tmp_path).paths == ["a/1.png"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # Python's rmtree recurses


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the operating system is replaced here."""
    save(tmp_path / "a/1.png")
    save(tmp_path / "a/deep/2.png")
    true = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"a/deep cannot be read: Permission denied"):
        open_folder(tmp_path)


def test_what_operating_systems_leave_is_no_class(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/._1.png", "a/.DS_Store/x.png", "a/__MACOSX/2.png", "__MACOSX/a/1.png", "b/1.png"):
        save(tmp_path / name) if name.endswith("png") else None
    source = open_folder(tmp_path)
    assert source.class_names == ["a", "b"]
    assert source.paths == ["a/1.png", "b/1.png"]
    (note,) = source.notes
    assert note == "left out, as hidden or of the operating system: __MACOSX, a/.DS_Store, a/._1.png and 1 more"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"caf\xe9", "is not UTF-8; rename it"),
        (b"a\x1b[2J", "has control characters"),
        (b"a\nb", "has control characters"),
        (b" ", "is empty"),
    ],
)
def test_names_of_classes_are_checked_at_the_door(tmp_path: Path, name: bytes, told: str) -> None:
    """All that comes later can print and store them: cards, exports, TensorBoard, YAML."""
    folder = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
    os.mkdir(folder)  # noqa: PTH102
    save(tmp_path / "plain/1.png")
    with pytest.raises(InputError, match=told):
        open_folder(tmp_path)


def test_an_image_that_ends_early_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a/1.png"
    path.parent.mkdir()
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    source = open_folder(tmp_path)
    with pytest.raises(BadDataError, match="the chunk at byte 33 is damaged"):
        source.read(0)


paths = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90), unique=True, max_size=20)


@given(paths)
def test_keys_are_unique_and_safe(files: list[str]) -> None:
    keys = safe_keys([f"class/{file}" for file in files])
    assert len(set(keys)) == len(files)
    assert all(SAFE_NAME.fullmatch(key) for key in keys)


def test_keys_are_readable_and_collisions_told_apart() -> None:
    assert safe_keys(["cats/my cat.png", "dogs/1.png"]) == ["cats-my-cat", "dogs-1"]
    one, other = safe_keys(["a/x.png", "a/x.jpg"])
    assert one != other
    assert one.startswith("a-x-")


# Attributes

FILES = ["a/1.png", "a/2.png", "b/1.png"]


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_attributes_take_the_order_of_the_files(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "t.csv", "\ufefffile,male, age\nb/1.png,-1,0.5\n2.png,1,7\n\n./a/1.png,0,1e3\n")
    attributes = read_attributes(csv, FILES)
    assert {name: (str(values.dtype), values.tolist()) for name, values in attributes.items()} == {
        "male": ("int64", [0, 1, -1]),
        "age": ("float64", [1000.0, 7.0, 0.5]),
    }


def test_an_accent_may_be_written_in_either_form(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "t.csv", "file,x\ncafe\u0301.png,1\n")
    assert read_attributes(csv, ["a/caf\u00e9.png"])["x"].tolist() == [1]


def test_attributes_are_kept_exactly(tmp_path: Path) -> None:
    """Ids that float32 would round, beside fractions that it would round, too."""
    for number, file in enumerate(FILES):
        save(tmp_path / "in" / file, colour=number)
    rows = ["file,id,x", "a/1.png,16777217,0.1", f"a/2.png,{2**53},1e-9", "b/1.png,-3,16777217"]
    csv = write_csv(tmp_path / "t.csv", "\n".join(rows))
    shard(open_folder(tmp_path / "in", csv), tmp_path / "out")
    index = Index.load(tmp_path / "out")
    by_key = {key: [values[row].item() for values in index.attributes.values()] for row, key in enumerate(index.keys())}
    assert by_key == {"a-1": [16777217, 0.1], "a-2": [2**53, 1e-9], "b-1": [-3, 16777217.0]}
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "begins with ''; expected the columns file,<attribute>"),
        ("name,male\na/1.png,1\n", "begins with 'name,male'; expected the columns file,<attribute>"),
        ("file\na/1.png\n", "begins with 'file'; expected the columns"),
        ("file,x,x\n", "columns x, x need names that differ"),
        ("file,x,\n", "need names that differ"),
        ("file,x\na/1.png,1\na/2.png\nb/1.png,1,2\n", "rows with other than 2 cells .2.: a/2.png, b/1.png"),
        ("file,x\na/1.png,1\na/2.png,1\n", "images without a row .1.: b/1.png"),
        ("file,x\na/1.png,1\n2.png,1\nb/1.png,1\nc.png,1\n", "rows that name no image or more than one .1.: c.png"),
        (
            "file,x\na/1.png,1\n2.png,1\n1.png,1\n",
            "name no image or more than one .1.: 1.png; images without a row .1.: b",
        ),
        ("file,x\na/1.png,1\n2.png,1\na/2.png,1\nb/1.png,1\n", "images with a second row .1.: a/2.png"),
        (
            "file,x\na/1.png,1\na/2.png,red\nb/1.png,blue\n",
            "column 'x' has 'red' for a/2.png .such cells: 2.; .*code categ",
        ),
        ("file,x\na/1.png,1\na/2.png,\nb/1.png,1\n", "column 'x' has '' for a/2.png .such cells: 1"),
        ("file,x\na/1.png,nan\na/2.png,1\nb/1.png,1\n", "column 'x' has 'nan' for a/1.png"),
        ("file,x\na/1.png,1e309\na/2.png,1\nb/1.png,1\n", "column 'x' has '1e309'"),
        ("file,x\na/1.png,1_000\na/2.png,1\nb/1.png,1\n", "column 'x' has '1_000'"),
        (f"file,x\na/1.png,{2**53 + 1}\na/2.png,1\nb/1.png,1\n", f"column 'x' has '{2**53 + 1}'"),
        ("file,x\x07\na/1.png,1\n", "the name of the column 'x.x07' has control characters"),
    ],
)
def test_wrong_attributes_are_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_attributes(write_csv(tmp_path / "t.csv", text), FILES)


def test_attribute_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_attributes(tmp_path / "t.csv", FILES)
    (tmp_path / "t.csv").write_bytes(b"file,x\n\xff,1\n")
    with pytest.raises(InputError, match="it is not text in UTF-8: byte 7"):
        read_attributes(tmp_path / "t.csv", FILES)


def test_many_missing_rows_are_counted(tmp_path: Path) -> None:
    files = [f"a/{number}.png" for number in range(10)]
    with pytest.raises(InputError, match=r"images without a row \(9\): a/1\.png, a/2\.png, a/3\.png and 6 more"):
        read_attributes(write_csv(tmp_path / "t.csv", "file,x\na/0.png,1\n"), files)
