"""The central side of a run: computes the multipliers, keeps the journal, knows how far the run is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError

from cdt import filenames
from cdt.cluster.nodes import on_node
from cdt.cluster.watchdog import Beat, Hang, Process, Watch
from cdt.dual import DualProblem, DualState, Sums, dual_step, journal_rows, journaled
from cdt.errors import CdtError
from cdt.monitor.journal import append, note


class Failure(NamedTuple):
    """What ended a worker, as a message for the user."""

    rank: int
    error: CdtError


class Look(NamedTuple):
    """The state of a run."""

    process: Process
    """The process of the coordinator itself."""
    report: dict[str, Any]
    """The newest value of everything that was reported."""
    hang: Hang | None


class Coordinator:
    """Holds nothing that training depends on: the dual state comes with each question and travels in the checkpoint."""

    def __init__(
        self,
        directory: Path,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        notice: threading.Event | None = None,
    ) -> None:
        self._on_progress = on_progress
        self._notice = notice or threading.Event()
        self._directory = directory
        self._report: dict[str, Any] = {}
        self._failures: list[Failure] = []
        self._watch = Watch()

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        """The next dual state, journaled."""
        after = dual_step(problem, state, sums)
        rows = journal_rows(problem, after, step, journaled(problem, state, after))
        append(self._directory / filenames.DUAL, *rows)
        return after

    def progress(self, report: dict[str, Any]) -> None:
        self._report = {**self._report, **report}
        if self._on_progress:
            self._on_progress(self._report)

    def ask_to_leave(self) -> None:
        """Asks the workers to save and end; they check at every report."""
        self._notice.set()

    def leaving(self) -> bool:
        return self._notice.is_set()

    def expect(self, rank: int, process: Process) -> None:
        self._watch.expect(rank, process, time.monotonic())

    def beat(self, beat: Beat) -> bool:
        """Whether that worker must write its stack."""
        return self._watch.beat(beat, time.monotonic())

    def leave(self, rank: int) -> None:
        self._watch.leave(rank)

    def show_stacks(self) -> None:
        self._watch.show()

    def process(self) -> Process:
        return Process.mine()

    def look(self, patience: float) -> Look:
        return Look(Process.mine(), self._report, self._watch.hung(time.monotonic(), patience))

    def failed(self, failure: Failure) -> None:
        self._failures.append(failure)

    def failures(self) -> list[Failure]:
        """Failures in the order of arrival: the first may be the cause of the others."""
        return self._failures

    def forget_workers(self) -> None:
        """Drops the failures and heartbeats of the workers so far: from now on others are started."""
        self._failures, self._watch = [], Watch()

    def note(self, kind: str, text: str, **details: Any) -> None:
        """Records in events.jsonl what the workers cannot, if the disk has room for it."""
        note(self._directory, self._report.get("step", 0), kind, text, **details)


class RemoteCoordinator:
    """The coordinator as a named actor on the driver's node: outlives workers and their nodes; restarts."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._process: Process = ray.get(actor.process.remote())

    @classmethod
    def start(cls, directory: Path) -> RemoteCoordinator:
        name = f"cdt-coordinator-{directory.name}-{time.time_ns()}"
        here = ray.get_runtime_context().get_node_id()
        options = {"name": name, "max_restarts": -1, "max_task_retries": -1, **on_node(here)}
        return cls(ray.remote(Coordinator).options(**options).remote(directory))

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        return ray.get(self._actor.dual_step.remote(step, problem, state, sums))

    def progress(self, report: dict[str, Any]) -> None:
        self._actor.progress.remote(report)

    def ask_to_leave(self) -> None:
        ray.get(self._actor.ask_to_leave.remote())

    def leaving(self) -> bool:
        return ray.get(self._actor.leaving.remote())

    def expect(self, rank: int, process: Process) -> None:
        ray.get(self._actor.expect.remote(rank, process))

    def beat(self, beat: Beat) -> bool:
        return ray.get(self._actor.beat.remote(beat))

    def leave(self, rank: int) -> None:
        self._actor.leave.remote(rank)

    def show_stacks(self) -> None:
        ray.get(self._actor.show_stacks.remote())

    def look(self, patience: float) -> Look:
        """The state of the run. A coordinator that is silent for ``patience`` seconds is ended, and asked again."""
        while True:
            try:
                found: Look = ray.get(self._actor.look.remote(patience), timeout=patience)
            except GetTimeoutError:
                self._process.end()
            else:
                self._process = found.process
                return found

    def failed(self, failure: Failure) -> None:
        ray.get(self._actor.failed.remote(failure))

    def failures(self) -> list[Failure]:
        return ray.get(self._actor.failures.remote())

    def forget_workers(self) -> None:
        ray.get(self._actor.forget_workers.remote())

    def note(self, kind: str, text: str, **details: Any) -> None:
        ray.get(self._actor.note.remote(kind, text, **details))

    def stop(self) -> None:
        ray.kill(self._actor)
