"""Which process trains a run: one at a time; the file left by a killed process does not count."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter

from cdt.errors import InputError
from cdt.files import written_aside
from cdt.records import Number, read_record

SIGN = "running.json"
SILENT_S = 300.0
"""Seconds without a heartbeat after which a process on another machine counts as dead."""


@dataclass(frozen=True)
class Presence:
    """The process that trains a run."""

    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: Number
    """Start of the process, seconds since 1970: distinguishes it from a later process with the same id."""

    @classmethod
    def mine(cls) -> Presence:
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def lives(self, sign: Path) -> bool:
        """Whether the process is alive: on this machine by asking the system, on others by its last heartbeat."""
        if self.host != socket.gethostname():
            return time.time() - sign.stat().st_mtime < SILENT_S
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False


_KIND = TypeAdapter(Presence)
_LIMIT = 1 << 16
"""Bytes of the file."""


def who_works(directory: Path) -> Presence | None:
    """The process that trains the run in ``directory`` now; None if there is none, or its file is damaged."""
    sign = directory / SIGN
    try:
        found = read_record(sign, _KIND, _LIMIT)
        return found if found.lives(sign) else None
    except (OSError, InputError, psutil.Error):
        return None


def check_idle(directory: Path) -> None:
    """Raises InputError if another process trains the run."""
    other, mine = who_works(directory), Presence.mine()
    if other and other != mine:
        gone = f"; if that machine is gone, delete {directory / SIGN}" if other.host != mine.host else ""
        raise InputError(f"{directory} is being trained by process {other.pid} on {other.host}{gone}")


@contextmanager
def at_work(directory: Path) -> Iterator[Callable[[], None]]:
    """Yields a function that records a heartbeat. Both raise InputError if another process trains the run.

    May be nested in one process.
    """
    entered = _claim(directory)

    def alive() -> None:
        _claim(directory)  # the file may have been removed
        (directory / SIGN).touch()

    try:
        yield alive
    finally:
        if entered:
            (directory / SIGN).unlink(missing_ok=True)


def _claim(directory: Path) -> bool:
    """Writes running.json for this process; returns False if it was written before.

    If two processes try at once and the file does not exist, one succeeds. Raises InputError if another one trains the
    run.
    """
    sign = directory / SIGN
    if who_works(directory) == Presence.mine():
        return False
    with written_aside(sign, unique=True) as aside:
        aside.write_text(json.dumps(asdict(Presence.mine())), encoding="utf-8")
        try:
            sign.hardlink_to(aside)  # atomic: fails if the file exists
        except OSError:
            check_idle(directory)  # if it returns, the file was left by a dead process
    return True
