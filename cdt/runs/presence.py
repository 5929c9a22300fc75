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

import psutil

from cdt.errors import InputError

SIGN = "running.json"
SILENT_S = 300.0
"""Seconds without a heartbeat after which a process on another machine counts as dead."""


@dataclass(frozen=True)
class Presence:
    """The process that trains a run."""

    host: str
    pid: int
    started: float
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


def who_works(directory: Path) -> Presence | None:
    """The process that trains the run in ``directory`` now; None if there is none."""
    sign = directory / SIGN
    try:
        found = Presence(**json.loads(sign.read_text()))
        return found if found.lives(sign) else None
    except (OSError, ValueError, TypeError):
        return None


def check_idle(directory: Path) -> None:
    """Raises InputError if another process trains the run."""
    other, mine = who_works(directory), Presence.mine()
    if other and other != mine:
        gone = f"; if that machine is gone, delete {directory / SIGN}" if other.host != mine.host else ""
        raise InputError(f"{directory} is being trained by process {other.pid} on {other.host}{gone}")


@contextmanager
def at_work(directory: Path) -> Iterator[Callable[[], None]]:
    """Yields a function that records a heartbeat. Raises InputError if another process trains the run."""
    check_idle(directory)
    sign = directory / SIGN
    sign.write_text(json.dumps(asdict(Presence.mine())))
    try:
        yield sign.touch
    finally:
        sign.unlink(missing_ok=True)
