"""Ranks that hang: each gives signs of life; who falls silent, or stands still with all others, is named and ended."""

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

from cdt.cluster.nodes import on_node

PACKAGE = str(Path(__file__).parent.parent)
STACKS = "stacks"
"""Where in a run directory the stacks of its ranks are written."""
START_S = 120.0
"""So much longer a worker that has just been started may be silent: it imports much, perhaps with many others."""
END_S = 30.0
"""The longest that ending a process on another machine may take."""


class Process(NamedTuple):
    """A process on one of Ray's nodes."""

    node: str
    pid: int

    @classmethod
    def mine(cls) -> Process:
        return cls(ray.get_runtime_context().get_node_id(), os.getpid())

    def end(self) -> str:
        """Kills it; what the system said of it just before, such as ``stopped``."""
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
    """A sign of life."""

    rank: int
    process: Process
    step: int
    place: str
    """Where in this package it stands."""
    position: int
    """Changes whenever it does anything."""


class Hang(NamedTuple):
    """Processes that will not go on by themselves, and how that showed."""

    text: str
    processes: list[Process]


class Watch:
    """What is known of the ranks: when each was last heard of, and when it last moved."""

    def __init__(self) -> None:
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._unshown: set[int] = set()

    def beat(self, beat: Beat, now: float) -> bool:
        """Whether that rank is to write down its stack."""
        before = self._beats.get(beat.rank)
        if before is None or before != beat:
            self._moved[beat.rank] = now
        self._beats[beat.rank], self._heard[beat.rank] = beat, now
        shows = beat.rank in self._unshown
        self._unshown.discard(beat.rank)
        return shows

    def expect(self, rank: int, process: Process, now: float) -> None:
        """That process has been started, and is to give signs of life."""
        self._beats[rank] = Beat(rank, process, 0, "start", 0)
        self._heard[rank] = self._moved[rank] = now + START_S

    def leave(self, rank: int) -> None:
        """It is done and will not be heard of again."""
        self._beats.pop(rank, None)

    def show(self) -> None:
        """All that give signs of life are to write down their stacks."""
        self._unshown = set(self._beats)

    def hung(self, now: float, patience: float) -> Hang | None:
        """Who has been silent for ``patience`` seconds; or all, when none has moved for as long."""
        silent = [beat for rank, beat in self._beats.items() if now - self._heard[rank] > patience]
        if silent:
            named = ", ".join(
                f"worker {beat.rank} (process {beat.process.pid}), last {_where(beat)}" for beat in silent
            )
            return Hang(f"no sign of life for {patience:.3g} s from {named}", [beat.process for beat in silent])
        if not self._beats or any(now - self._moved[rank] <= patience for rank in self._beats):
            return None
        beats = sorted(self._beats.values())
        named = ", ".join(f"worker {beat.rank} (process {beat.process.pid}) {_where(beat)}" for beat in beats)
        return Hang(f"no worker has moved for {patience:.3g} s: {named}", [beat.process for beat in beats])


def _where(beat: Beat) -> str:
    return f"at step {beat.step} in {beat.place}"


@dataclass(frozen=True)
class Watcher:
    """Who takes the signs of life of a run's ranks."""

    directory: Path
    """Of the run."""
    expect: Callable[[int, Process], None]
    every: float
    """Seconds between two of them."""
    tell: Callable[[Beat], bool]
    """Whether that rank is to write down its stack."""
    leave: Callable[[int], None]


@contextlib.contextmanager
def pulse(rank: int, watcher: Watcher) -> Iterator[Callable[[Callable[[], int]], None]]:
    """Signs of life of this thread from another one, and a stack where one is asked for.

    Yields what takes the function that knows the step, once there is one.
    """
    watched, mine, done = threading.get_ident(), Process.mine(), threading.Event()
    steps: list[Callable[[], int]] = [lambda: 0]

    def give() -> None:
        while not done.wait(watcher.every):
            place, position = _position(sys._current_frames().get(watched))
            step = steps[-1]()
            try:
                if watcher.tell(Beat(rank, mine, step, place, hash((step, position)))):
                    _write_stack(watcher.directory / STACKS / f"rank-{rank}.txt", step)
            except (RayError, OSError):
                continue  # the coordinator begins again, or the disk is full: the next one may come through

    threading.Thread(target=give, daemon=True, name="pulse").start()
    try:
        yield steps.append
    finally:
        done.set()
        watcher.leave(rank)


def _position(frame: FrameType | None) -> tuple[str, int]:
    """Where in this package a thread stands, and a number for where in all of its calls."""
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
