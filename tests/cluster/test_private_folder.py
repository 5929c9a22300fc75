"""Where a Ray of our own keeps its files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdt.cluster import private_folder as module
from cdt.cluster.private_folder import BELOW, LOCK, SOCKET_PATH, private_folder
from cdt.errors import InputError


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR, short enough."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


def test_only_its_owner_can_open_it_and_it_is_removed(short: Path) -> None:
    with private_folder() as folder:
        assert folder.parent.parent == short
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        socket = folder / "session_2026-11-28_12-06-30_179569_4194304" / "sockets" / "plasma_store"
        assert len(os.fsencode(socket)) == len(str(short)) + BELOW <= SOCKET_PATH
        socket.parent.mkdir(parents=True)
        socket.touch()
    assert not list(short.iterdir())


def test_rays_own_variable_comes_first(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as other:
        monkeypatch.setenv("RAY_TMPDIR", other)
        with private_folder() as folder:
            assert folder.parent.parent == Path(other)


def test_a_path_that_is_too_long_is_not_used(tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 10)))
    with private_folder() as folder:
        assert folder.parent.parent == Path("/tmp")
    monkeypatch.setattr(module.os, "access", lambda place, mode: False)
    with pytest.raises(InputError) as caught, private_folder():
        raise AssertionError
    assert str(caught.value).startswith("Ray's sockets need a directory with a path of at most ")
    assert str(caught.value).endswith("long nor /tmp is one: set TMPDIR to one")


def test_what_a_killed_command_has_left_is_removed_by_the_next_one(short: Path) -> None:
    code = (
        "import os, tempfile; from cdt.cluster.private_folder import private_folder\n"
        f"tempfile.tempdir = {str(short)!r}\n"
        "with private_folder() as folder:\n    folder.mkdir(); print(flush=True); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    (left,) = short.iterdir()
    (short / "cdt-foreign").mkdir()  # of something else
    with private_folder() as alive:
        assert not left.exists()
        with private_folder():
            assert (alive.parent / LOCK).exists()
    assert [path.name for path in short.iterdir()] == ["cdt-foreign"]


def test_what_ray_still_writes_is_removed_by_the_next_command(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = module.shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, **options: None)
    with private_folder() as folder:
        folder.mkdir()
    assert folder.exists()
    monkeypatch.setattr(module.shutil, "rmtree", remove)
    with private_folder():
        assert not folder.exists()
