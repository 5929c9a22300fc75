"""Lists and braces that name shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from tars import sample, write_tar

from cdt.data.inspect.foreign import index_shards
from cdt.data.inspect.places import expand, most_places
from cdt.errors import InputError


def test_lists_and_braces(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a-{0..2}.tar\n\nhttp://h/b.tar\n")
    assert expand([f"@{tmp_path}/list.txt", "c.tar"]) == ["a-0.tar", "a-1.tar", "a-2.tar", "http://h/b.tar", "c.tar"]
    for wrong, told in ((["a", "a"], "named 2 times"), ([f"@{tmp_path}/no"], "no such file"), (["pipe:ls"], "pipe:")):
        with pytest.raises(InputError, match=told):
            expand(wrong)


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
    with pytest.raises(InputError, match="expands to more than 1,000,000 shards"):
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
