"""The watchdog: a rank without heartbeats is reported and killed; so are all ranks if none makes progress."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil
import ray
from ray.exceptions import RayError

from cdt import filenames
from cdt.cluster.nodes import on_node

PACKAGE = str(Path(__file__).parent.parent)
START_S = 120.0
"""Seconds added to the timeout of a worker's first heartbeat: it imports much, perhaps at once with many others."""
END_S = 30.0
"""Timeout in seconds for killing a process on another machine."""


class Process(NamedTuple):
    """A process on one of Ray's nodes."""

    node: str
    pid: int

    @classmethod
    def mine(cls) -> Process:
        return cls(ray.get_runtime_context().get_node_id(), os.getpid())

    def end(self) -> str:
        """Kills the process; returns its state just before, such as ``stopped``."""
        if self.node == ray.get_runtime_context().get_node_id():
            return _end(self.pid)
        ask = ray.remote(_end).options(**on_node(self.node)).remote(self.pid)
        try:
            return ray.get(ask, timeout=END_S)
        except RayError:
            return "out of reach"


def _end(pid: int) -> str:
    try:
        state = psutil.Process(pid).status()
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return "gone"
    return state


class Beat(NamedTuple):
    """A heartbeat."""

    rank: int
    process: Process
    step: int
    place: str
    """The line of this package that the rank executes."""
    position: int
    """Changes whenever the rank makes progress."""


class Hang(NamedTuple):
    """Processes that hang, and how this was detected."""

    text: str
    processes: list[Process]


class Watch:
    """What is known of the ranks: the time of each one's last heartbeat, and of its last progress."""

    def __init__(self) -> None:
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._unshown: set[int] = set()

    def beat(self, beat: Beat, now: float) -> bool:
        """Takes a heartbeat; returns whether that rank must write its stack."""
        before = self._beats.get(beat.rank)
        if before is None or before != beat:
            self._moved[beat.rank] = now
        self._beats[beat.rank], self._heard[beat.rank] = beat, now
        shows = beat.rank in self._unshown
        self._unshown.discard(beat.rank)
        return shows

    def expect(self, rank: int, process: Process, now: float) -> None:
        """Registers a started process, which must send heartbeats from now on."""
        self._beats[rank] = Beat(rank, process, 0, "start", 0)
        self._heard[rank] = self._moved[rank] = now + START_S

    def leave(self, rank: int) -> None:
        """Removes a rank that is done and sends no more heartbeats."""
        self._beats.pop(rank, None)

    def show(self) -> None:
        """Every rank that sends heartbeats must write its stack at its next one."""
        self._unshown = set(self._beats)

    def hung(self, now: float, patience: float) -> Hang | None:
        """The ranks without a heartbeat for ``patience`` seconds; or all ranks, if none made progress for as long."""
        silent = [beat for rank, beat in self._beats.items() if now - self._heard[rank] > patience]
        if silent:
            named = ", ".join(
                f"worker {beat.rank} (process {beat.process.pid}), last {_where(beat)}" for beat in silent
            )
            return Hang(f"no heartbeat for {patience:.3g} s from {named}", [beat.process for beat in silent])
        if not self._beats or any(now - self._moved[rank] <= patience for rank in self._beats):
            return None
        beats = sorted(self._beats.values())
        named = ", ".join(f"worker {beat.rank} (process {beat.process.pid}) {_where(beat)}" for beat in beats)
        return Hang(f"no worker has made progress for {patience:.3g} s: {named}", [beat.process for beat in beats])


def _where(beat: Beat) -> str:
    return f"at step {beat.step} in {beat.place}"


@dataclass(frozen=True)
class Watcher:
    """The receiver of the heartbeats of a run's ranks."""

    directory: Path
    """The run directory."""
    expect: Callable[[int, Process], None]
    every: float
    """Seconds between two heartbeats."""
    tell: Callable[[Beat], bool]
    """Sends a heartbeat; returns whether that rank must write its stack."""
    leave: Callable[[int], None]


@contextlib.contextmanager
def pulse(rank: int, watcher: Watcher) -> Iterator[Callable[[Callable[[], int]], None]]:
    """Sends heartbeats for this thread from another one, and writes a stack on request.

    Yields a function that sets where the step is read from, to be called once training knows its step.
    """
    watched, mine, done = threading.get_ident(), Process.mine(), threading.Event()
    steps: list[Callable[[], int]] = [lambda: 0]

    def give() -> None:
        while not done.wait(watcher.every):
            place, position = _position(sys._current_frames().get(watched))
            step = steps[-1]()
            try:
                if watcher.tell(Beat(rank, mine, step, place, hash((step, position)))):
                    _write_stack(watcher.directory / filenames.STACKS / f"rank-{rank}.txt", step)
            except (RayError, OSError):
                continue  # the coordinator is restarting, or the disk is full: the next heartbeat may succeed

    threading.Thread(target=give, daemon=True, name="pulse").start()
    try:
        yield steps.append
    finally:
        done.set()
        watcher.leave(rank)


def _position(frame: FrameType | None) -> tuple[str, int]:
    """The line of this package that a thread executes, and a number for its position in all of its calls."""
    place, calls = "start", []
    while frame is not None:
        calls.append((frame.f_code.co_filename, frame.f_lasti))
        if place == "start" and frame.f_code.co_filename.startswith(PACKAGE):
            file = Path(frame.f_code.co_filename).relative_to(PACKAGE)
            place = f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return place, hash(tuple(calls))


def _write_stack(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} at step {step}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
