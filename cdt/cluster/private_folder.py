"""Where a Ray of our own keeps its sockets, logs and spilled objects: a folder that only this user can open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cdt.errors import InputError

PREFIX = "cdt-"
RAY = "r"
"""The folder inside that Ray is given: Ray itself opens it to everyone."""
LOCK = "lock"
"""The file inside that a living command holds locked."""
SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""The longest path of a socket, in bytes."""
BELOW = len(f"/{PREFIX}12345678/{RAY}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Bytes of what Ray adds to the path of the parent directory."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for Ray, which is removed afterwards; those of commands that were killed are removed before.

    It is below RAY_TMPDIR or TMPDIR. If that path is too long for Ray's sockets, it is below /tmp.

    Raises InputError if there is no such place.
    """
    parent = _parent()
    _clear(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
    with (folder / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder / RAY
        finally:
            _remove(folder)


def _parent() -> str:
    candidates = [os.environ.get("RAY_TMPDIR", ""), tempfile.gettempdir(), "/tmp"]
    for place in map(os.path.abspath, filter(None, candidates)):
        if len(os.fsencode(place)) + BELOW <= SOCKET_PATH and os.access(place, os.W_OK | os.X_OK):
            return place
    raise InputError(
        f"Ray's sockets need a directory with a path of at most {SOCKET_PATH - BELOW} bytes where you can write, and "
        f"neither {tempfile.gettempdir()} nor /tmp is one: set TMPDIR to one"
    )


def _clear(parent: str) -> None:
    for folder in Path(parent).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # one of another user, or one that is just being removed
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / LOCK).open() as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """The lock last: what a dying process of Ray still writes is removed by the next command."""
    shutil.rmtree(folder / RAY, ignore_errors=True)
    if not (folder / RAY).exists():
        shutil.rmtree(folder, ignore_errors=True)
