"""What a job takes along, and what stays."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from cdt.cluster.parcel import code_of_cdt, files_to_ship, packed, unpack
from cdt.errors import InputError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    for name in ("my.yaml", "code/a.py", "code/a.pyc", "runs/x/log", "secret.txt", "data/big.tar"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    (place / ".gitignore").write_text("*.pyc\n/runs/\n")
    (place / ".rayignore").write_text("data\n")
    (place / "outside").symlink_to("/etc/passwd")
    return place


SHIPPED = [Path(".gitignore"), Path(".rayignore"), Path("code/a.py"), Path("my.yaml"), Path("secret.txt")]


def test_what_git_and_ray_ignore_stays(place: Path) -> None:
    assert files_to_ship(place) == SHIPPED


def test_the_place_may_be_relative(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    assert files_to_ship(Path("place")) == SHIPPED


def test_a_checkout_is_no_different(place: Path) -> None:
    subprocess.run(["git", "init", "-q", place], check=True)
    subprocess.run(["git", "-C", place, "add", "my.yaml"], check=True)
    assert files_to_ship(place) == SHIPPED


def test_too_much_is_refused_with_the_largest(place: Path) -> None:
    (place / "weights").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        InputError, match=r"has 3\.0 MiB to ship in 6 files, and 2 are allowed; .*: weights \(3\.0 MiB\)"
    ):
        files_to_ship(place, limit_mb=2)


def test_directories_that_cannot_be_shipped(place: Path) -> None:
    with pytest.raises(InputError, match="is no directory"):
        files_to_ship(place / "my.yaml")
    (place / "loop").symlink_to(place / "loop")
    with pytest.raises(InputError, match="its links lead in a circle"):
        files_to_ship(place / "loop")
    assert files_to_ship(place) == SHIPPED
    (place / "a\udce9").touch()
    with pytest.raises(InputError, match="has a name that is not UTF-8"):
        files_to_ship(place)


def test_packing_copies_these_without_the_rules_that_were_followed(place: Path, tmp_path: Path) -> None:
    packed(place, SHIPPED, tmp_path / "there")
    left = {path.relative_to(tmp_path / "there") for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert left == {Path("code/a.py"), Path("my.yaml"), Path("secret.txt")}


def test_of_the_files_only_a_checkout_of_cdt_is_imported() -> None:
    shadows = [Path("cdt.py"), Path("statistics.py"), Path("cdt/my.yaml")]
    assert code_of_cdt(shadows) == []
    code = [Path("cdt/__init__.py"), Path("cdt/cli/__init__.py")]
    assert code_of_cdt([*shadows, *code]) == [Path("cdt/my.yaml"), *code]


def test_a_wheel_of_cdt_is_unpacked_and_no_other_file(tmp_path: Path) -> None:
    for name, inside in (("cdt", "cdt/__init__.py"), ("other", "other/__init__.py")):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            archive.writestr(inside, "x = 1")
            archive.writestr(f"{name}.dist-info/METADATA", "Version: 9")
    (tmp_path / "text.whl").write_text("no wheel")
    unpack(tmp_path / "cdt.whl", tmp_path / "there")
    assert (tmp_path / "there/cdt/__init__.py").read_text() == "x = 1"
    for name, told in (
        ("other", "not a wheel of cdt"),
        ("text", "cannot be unpacked"),
        ("no", "no such wheel; build one"),
    ):
        with pytest.raises(InputError, match=told):
            unpack(tmp_path / f"{name}.whl", tmp_path / "elsewhere")
