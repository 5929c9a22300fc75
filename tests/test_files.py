from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cdt.files import remove, write_text, written_aside


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
