"""Reads files of bounded size. Writes files and folders completely or not at all: they get their name at the end."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import psutil

from cdt.errors import InputError

LONGEST_KEPT, LONGEST_SUFFIX = 150, 16
"""Bytes of a name, and of its suffix, that leave room for what a name aside has besides."""


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Only regular files are read: a pipe may never end, and neither may a device. No more than ``limit`` bytes and one
    are ever in memory.

    Raises InputError, which names the file and the reason: it is not there, may not be read, is a directory or
    another kind of file, or is too large. Where the system gave the reason, that OSError is the
    cause, so that FileNotFoundError can be distinguished.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(limit + 1) if regular else b""
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError:  # a NUL or a lone surrogate, which no name of a file has
        raise InputError(f"{str(path)!r}: no file can have this name") from None
    if not regular:
        raise InputError(f"{path}: it is not a regular file")
    if len(content) > limit:
        raise InputError(f"{path}: it is larger than {limit:,} bytes, the most that are read of such a file")
    return content


def resolved(path: Path) -> Path:
    """The absolute path without links. Raises InputError for a loop of links, and for what cannot be a path."""
    try:
        found = path.resolve()
    except ValueError:  # a NUL
        raise InputError(f"{str(path)!r}: no file can have this name") from None
    except (OSError, RuntimeError):
        raise InputError(f"{path}: its links lead in a circle") from None
    if os.path.islink(found):  # noqa: PTH114 - of such a circle Python 3.13 follows no link; never raises
        raise InputError(f"{path}: its links lead in a circle")
    return found


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file of any size, to be read in parts. Raises OSError, also for what is no regular file."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller's to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def append_text(path: Path, text: str) -> None:
    """Adds to the end of a regular file, which is made if it does not exist. Raises OSError, also for a pipe."""
    with open(path, "a", encoding="utf-8", opener=_for_appending) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        file.write(text)


def _for_appending(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def sha256(path: str | Path) -> str:
    """The digest of a regular file's content, in hexadecimal. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe at once: otherwise that waits until something writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: str | Path, limit: int) -> str:
    """The text of a regular file of at most ``limit`` bytes, which is UTF-8; a byte order mark is left out.

    Raises InputError as ``read_bytes`` does, and for what is not UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: it is not text in UTF-8: byte {error.start} is {content[error.start]:#04x}"
        ) from None


@contextmanager
def written_aside(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yields a free name next to ``path``, for a file or a folder, which is renamed to ``path`` at the end.

    If something fails before that, what was written is removed. A file or an empty folder at ``path`` is replaced. What
    a killed process left is removed, too. ``unique``: several processes or threads may write the same path at once.
    Raises OSError, which names a file.
    """
    writer = f".{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}" if unique else ""
    stem, suffix = _short(path)
    aside = path.with_name(f".{stem}{writer}.partial{suffix}")
    try:
        if unique:
            _remove_left_behind(path)
        remove(aside)
        yield aside
        aside.replace(path)
    except OSError as error:
        if error.filename is None:  # of a full disk, the system does not say which file was written
            error.filename = str(path)
        raise
    finally:
        remove(aside)


def _short(path: Path) -> tuple[str, str]:
    """Stem and suffix of a name aside: of a long one a digest, as file systems allow a name 255 bytes."""
    if len(name := os.fsencode(path.name)) <= LONGEST_KEPT:
        return path.stem, path.suffix
    return hashlib.sha256(name).hexdigest(), path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""


def check_place(path: Path) -> None:
    """Tries whether something can be written at ``path``, which may lie in folders that do not exist yet.

    An empty file is made beside it, and removed. Raises InputError if the system refuses that.
    """
    folder = next((parent for parent in path.parents if parent.exists()), path)
    stem, suffix = _short(path)
    aside = folder / f".{stem}.{os.getpid()}.partial{suffix}"
    try:
        path.exists()  # raises for a name that is too long, which the one aside is not
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot write in {folder}: {error.strerror}") from error


def _remove_left_behind(path: Path) -> None:
    """Removes what dead processes of this machine left behind."""
    stem, suffix = map(re.escape, _short(path))
    name = re.compile(rf"\.{stem}\.{re.escape(socket.gethostname())}\.(\d+)\.\d+\.partial{suffix}")
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if (left := name.fullmatch(found.name)) and not psutil.pid_exists(int(left[1])):
            remove(found)


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all. Raises OSError."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
