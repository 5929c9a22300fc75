from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from cdt.errors import InputError
from cdt.files import append_text, check_place, read_bytes, read_text, remove, write_text, written_aside


def refused(path: str | Path, limit: int = 1000) -> str:
    """The reason, told after the name, in one line."""
    with pytest.raises(InputError) as error:
        read_text(path, limit)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_file_up_to_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    assert read_bytes(tmp_path / "a", 1000) == b"x" * size
    assert read_text(str(tmp_path / "a"), 1000) == "x" * size


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link", 1000) == "x"


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert read_text(tmp_path / "a", 1000) == "é"


def test_why_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1001)
    (tmp_path / "latin").write_bytes(b"ab\xe9")
    (tmp_path / "wide").write_text("a", encoding="utf-16")
    (tmp_path / "round").symlink_to("round")
    assert refused(tmp_path / "none") == "No such file or directory"
    assert refused(tmp_path / "large" / "none") == "Not a directory"
    assert refused(tmp_path / "round") == "Too many levels of symbolic links"
    assert refused(tmp_path / ("x" * 300)) == "File name too long"
    assert refused(tmp_path) == "Is a directory"
    assert refused(tmp_path / "large") == "it is larger than 1,000 bytes, the most that are read of such a file"
    assert refused(tmp_path / "latin") == "it is not text in UTF-8: byte 2 is 0xe9"
    assert refused(tmp_path / "wide") == "it is not text in UTF-8: byte 0 is 0xff"
    assert refused("a\0b") == "'a\\x00b': no file can have this name"
    assert refused("a\udc00") == "'a\\udc00': no file can have this name"


def test_what_is_missing_can_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_bytes(tmp_path / "none", 1)
    assert isinstance(error.value.__cause__, FileNotFoundError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    assert refused(tmp_path / "a") == "Permission denied"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/full"])
def test_a_device_is_not_read(device: str) -> None:
    assert refused(device) == "it is not a regular file"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "it is not a regular file"


def test_a_socket_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    assert refused("socket") == "No such device or address"


def test_no_more_than_the_limit_is_held(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    tracemalloc.start()
    try:
        assert "larger than 1,000 bytes" in refused(tmp_path / "sparse")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unique", [False, True])
def test_a_file_is_replaced_when_all_of_it_is_there(tmp_path: Path, unique: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_aside(path, unique=unique) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.suffix == ".json"
        assert aside.name.startswith(".")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with written_aside(tmp_path / "out") as aside:
        aside.mkdir()
        (aside / "a").write_text("1")
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("name", ["a" * 255, "\u00e9" * 120, "a" * 251 + ".png", "a." + "b" * 250])
def test_a_name_may_be_as_long_as_file_systems_allow(tmp_path: Path, name: str, unique: bool) -> None:
    for text in ("old", "new"):
        with written_aside(tmp_path / name, unique=unique) as aside:
            aside.write_text(text)
            assert aside.suffix == (".png" if name.endswith(".png") else ".partial")
    assert (tmp_path / name).read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "old")

    def fail(make: Callable[[Path], None]) -> None:
        with written_aside(tmp_path / "a") as aside:
            make(aside)
            raise error

    for make in (Path.mkdir, Path.touch):
        with pytest.raises(error):
            fail(make)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_remains_of_a_killed_writer_are_cleared_away(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as aside:
        kept = aside
        aside.write_text("1")
    kept.mkdir()
    (kept / "half").touch()
    write_text(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "2"
    assert not kept.exists()


def test_a_link_to_a_folder_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    remove(tmp_path / "link")
    assert (tmp_path / "there" / "mine").exists()


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cdt.files import written_aside\n"
        "with written_aside(Path('out'), unique=True) as aside:\n"
        "    aside.mkdir(); print(aside, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    left = tmp_path / done.stdout.strip()
    assert left.is_dir()
    others = tmp_path / left.name.replace(socket.gethostname(), "elsewhere")
    others.mkdir()
    with written_aside(tmp_path / "another", unique=True) as aside:
        aside.touch()
    assert left.is_dir()
    with written_aside(tmp_path / "out", unique=True) as mine, written_aside(tmp_path / "out2", unique=True) as too:
        assert not left.exists()
        mine.touch()
        too.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"another", "out", "out2", others.name}


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    """A full disk is told without a name by the system."""
    with pytest.raises(OSError, match="No space") as caught, written_aside(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x.png")


def test_only_regular_files_are_appended_to(tmp_path: Path) -> None:
    append_text(tmp_path / "new", "a")
    append_text(tmp_path / "new", "b")
    assert (tmp_path / "new").read_text() == "ab"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing/x"):
        with pytest.raises(OSError, match=r"No such|Is a directory"):
            append_text(tmp_path / name, "c")
    with pytest.raises(OSError, match="it is not a regular file"):
        append_text(Path("/dev/null"), "c")


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("before")
    for path in (tmp_path / "file.txt", tmp_path / "new.txt", tmp_path / "a" / "b" / "c", tmp_path / ("x" * 255)):
        check_place(path)
    for path in (tmp_path / "file.txt" / "x", tmp_path / ("x" * 256), Path("/proc/x")):
        with pytest.raises(InputError, match=r": cannot write in "):
            check_place(path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "before")]
