"""A folder with one folder of images for each class."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sources import check_protocol, save

from cdt.data.format.damage import BadDataError
from cdt.data.format.header import SAFE_NAME
from cdt.data.sources import SOURCES
from cdt.data.sources.folder import open_folder, safe_keys
from cdt.data.write.shard import shard
from cdt.errors import InputError


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


B_AGAIN = ["b/loop/another/2.png"]


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
