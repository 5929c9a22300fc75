"""Who is at work on a run: one process at a time, and what is left of one that was killed does not count."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cdt.errors import InputError

SIGN = "running.json"
SILENT_S = 300.0
"""Without a sign of life for so long, a process on another machine is taken for dead."""


@dataclass(frozen=True)
class Presence:
    """The process that trains a run."""

    host: str
    pid: int
    started: float
    """When the process began, seconds since 1970: tells it from a later one of the same number."""

    @classmethod
    def mine(cls) -> Presence:
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def lives(self, sign: Path) -> bool:
        """Here, by asking the system; elsewhere, by its last sign of life."""
        if self.host != socket.gethostname():
            return time.time() - sign.stat().st_mtime < SILENT_S
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False


def who_works(directory: Path) -> Presence | None:
    """The process that trains the run in ``directory`` at this moment."""
    sign = directory / SIGN
    try:
        found = Presence(**json.loads(sign.read_text()))
        return found if found.lives(sign) else None
    except (OSError, ValueError, TypeError):
        return None


def check_idle(directory: Path) -> None:
    """Raises InputError when another process trains the run."""
    other, mine = who_works(directory), Presence.mine()
    if other and other != mine:
        gone = f"; if that machine is gone, delete {directory / SIGN}" if other.host != mine.host else ""
        raise InputError(f"{directory} is being trained by process {other.pid} on {other.host}{gone}")


@contextmanager
def at_work(directory: Path) -> Iterator[Callable[[], None]]:
    """Yields what gives a sign of life. Raises InputError when another process trains the run."""
    check_idle(directory)
    sign = directory / SIGN
    sign.write_text(json.dumps(asdict(Presence.mine())))
    try:
        yield sign.touch
    finally:
        sign.unlink(missing_ok=True)
