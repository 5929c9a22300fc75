"""Files and folders that are there whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yields a free name next to ``path``, for a file or a folder, which is renamed to ``path`` at the end.

    If something fails before that, what was written is removed. A file that is at ``path`` is replaced, as is an empty
    folder. ``unique``: several processes or threads may write the same path at once; otherwise the remains of one that
    was killed are cleared away here. Raises OSError.
    """
    writer = f".{os.getpid()}.{threading.get_ident()}" if unique else ""
    aside = path.with_name(f".{path.stem}{writer}.partial{path.suffix}")
    remove(aside)
    try:
        yield aside
        aside.replace(path)
    finally:
        remove(aside)


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
