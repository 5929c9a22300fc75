"""What stands before a file's own header: extended headers of any size that is usual, and sparse files."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from cdt.data.format.problems import Problems
from cdt.data.format.tar import MAX_PAX, Tar


def written(path: Path, fields: dict[str, str], name: str = "a.png", tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of a file with extended headers, and of one without."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for each, said in ((name, fields), ("b.png", {})):
            member = tarfile.TarInfo(each)
            member.size, member.pax_headers = 3, dict(said)
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


def names_and_problems(path: Path) -> tuple[list[str], Problems]:
    problems = Problems()
    with Tar(path, "a.tar", problems) as tar:
        members = list(tar.members())
        assert all(tar.read(member) == b"abc" for member in members)
    return [member.name for member in members], problems


@pytest.mark.parametrize("comment", [1 << 10, 1 << 16, (1 << 20) - 2000])
def test_a_path_behind_long_fields_is_found(tmp_path: Path, comment: int) -> None:
    fields = {"SCHILY.xattr." + "n" * 300: "1", "comment": "c" * comment}
    name = "d/" + "x" * 300 + ".png"
    assert names_and_problems(written(tmp_path / "a.tar", fields, name)) == ([name, "b.png"], Problems())


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_whole(tmp_path: Path, tar_format: int) -> None:
    name = "x" * 70_000 + ".png"
    assert names_and_problems(written(tmp_path / "a.tar", {}, name, tar_format))[0] == [name, "b.png"]


def test_a_file_whose_extended_header_is_too_large_is_named(tmp_path: Path) -> None:
    names, problems = names_and_problems(written(tmp_path / "a.tar", {"comment": "c" * MAX_PAX}))
    assert names == ["b.png"]
    assert problems.places == {"refused: extended header above 1,048,576 bytes": ["a.tar: a.png"]}


@pytest.mark.parametrize(
    ("size", "found", "problem"),
    [
        ("3", [("a.png", 3), ("b.png", 3)], None),
        ("99999999999", [], "truncated tar"),
        *[(size, [("a.png", 0), ("b.png", 3)], "damaged header") for size in ("x", "-1", "9" * 5000)],
    ],
)
def test_the_size_in_an_extended_header_counts(
    tmp_path: Path, size: str, found: list[tuple[str, int]], problem: str | None
) -> None:
    """Headers have no room for 8 GiB, so tar and Python write a zero there."""
    path = written(tmp_path / "a.tar", {"size": size})
    content = bytearray(path.read_bytes())
    place = content.index(b"a.png\0")
    content[place : place + 512] = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(content)
    problems = Problems()
    with Tar(path, "a.tar", problems) as tar:
        assert [(member.name, member.size) for member in tar.members()] == found
    assert problems.counts == ({problem: 1} if problem else {})


def test_damaged_fields_end_the_header(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", {"comment": "c"}, "\xe4" + "x" * 200 + ".png")
    path.write_bytes(path.read_bytes().replace(b"12 comment=c", b"99999999 men"))
    names, problems = names_and_problems(path)
    assert names[-1] == "b.png"
    assert not problems.counts


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar writes them")
@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_sparse_files_are_refused_by_name(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        for hole in range(40):  # more than fit into one header
            file.seek(hole * (1 << 16))
            file.write(b"x" * 4096)
    (tmp_path / "b.png").write_bytes(b"abc")
    subprocess.run(
        ["tar", *options, "-S", "-cf", "a.tar", "a.png", "b.png"], cwd=tmp_path, check=True, capture_output=True
    )
    names, problems = names_and_problems(tmp_path / "a.tar")
    assert names == ["b.png"]
    assert problems.places == {"refused: sparse file": ["a.tar: a.png"]}
