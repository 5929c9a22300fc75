"""The central side of a run: computes the multipliers, keeps the journal, knows how far the run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cdt.dual import DualProblem, DualState, Sums, dual_step, journal_rows
from cdt.monitor.recorder import append


@dataclass(frozen=True)
class Failure:
    """What ended a worker: its own words, and the exit status that they deserve."""

    rank: int
    text: str
    exit_status: int


class Coordinator:
    """Holds nothing that training depends on: the dual state comes with each question and travels in the checkpoint."""

    def __init__(self, directory: Path, on_progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._on_progress = on_progress
        self._journal = directory / "dual.jsonl"
        self._report: dict[str, Any] = {}
        self._failures: list[tuple[float, Failure]] = []

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        """The next dual state, journaled."""
        state = dual_step(problem, state, sums)
        for row in journal_rows(problem, state, step):
            append(self._journal, row)
        return state

    def progress(self, report: dict[str, Any]) -> None:
        self._report = {**self._report, **report}
        if self._on_progress:
            self._on_progress(self._report)

    def latest(self) -> dict[str, Any]:
        """The newest value of everything that was reported."""
        return self._report

    def failed(self, failure: Failure) -> None:
        self._failures.append((time.monotonic(), failure))

    def first_failure(self) -> Failure | None:
        """What failed first; the other ranks' errors follow from it."""
        return min(self._failures, key=lambda entry: entry[0])[1] if self._failures else None


class RemoteCoordinator:
    """The coordinator as a named actor: outlives workers, and restarts after a crash."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls, directory: Path) -> RemoteCoordinator:
        name = f"cdt-coordinator-{directory.name}-{time.time_ns()}"
        options = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return cls(ray.remote(Coordinator).options(**options).remote(directory))

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        return ray.get(self._actor.dual_step.remote(step, problem, state, sums))

    def progress(self, report: dict[str, Any]) -> None:
        self._actor.progress.remote(report)

    def latest(self) -> dict[str, Any]:
        return ray.get(self._actor.latest.remote())

    def failed(self, failure: Failure) -> None:
        ray.get(self._actor.failed.remote(failure))

    def first_failure(self) -> Failure | None:
        return ray.get(self._actor.first_failure.remote())

    def stop(self) -> None:
        ray.kill(self._actor)
