"""What the coordinator remembers of workers, and until when. Here it is a plain object; Ray runs the same class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdt.cluster import coordinator as module
from cdt.cluster.coordinator import Coordinator, Failure
from cdt.cluster.watchdog import START_S, Process
from cdt.errors import InputError, RunError

SILENT = Process("node", 17)
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for this process's node, Ray would start, and the tests that follow would be on its cluster."""
    monkeypatch.setattr(Process, "mine", lambda: Process("here", 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the coordinator reads, in seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_note_is_written_and_changes_nothing_else(clock: list[float], tmp_path: Path) -> None:
    coordinator, failure = Coordinator(tmp_path), Failure(1, RunError("worker 1 failed"))
    coordinator.expect(0, SILENT)
    coordinator.failed(failure)
    clock[0] = START_S + PATIENCE_S + 1
    coordinator.note("workers", "2 of 3 workers are used", used=2)
    (row,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (row["event"], row["text"], row["used"]) == ("workers", "2 of 3 workers are used", 2)
    assert coordinator.failures() == [failure]
    hang = coordinator.look(PATIENCE_S).hang
    assert hang is not None
    assert hang.processes == [SILENT]


def test_a_new_attempt_starts_without_the_workers_of_the_last_one(clock: list[float], tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    coordinator.expect(0, SILENT)
    coordinator.failed(Failure(0, InputError("no such class")))
    coordinator.progress({"step": 3})
    clock[0] = START_S + PATIENCE_S + 1
    coordinator.forget_workers()
    assert coordinator.failures() == []
    look = coordinator.look(PATIENCE_S)
    assert look.hang is None
    assert look.report == {"step": 3}, "how far the run is stays known"
    again = Process("node", 18)
    coordinator.expect(0, again)
    clock[0] += START_S + PATIENCE_S + 1
    hang = coordinator.look(PATIENCE_S).hang
    assert hang is not None
    assert hang.processes == [again]


def test_failures_come_in_the_order_in_which_they_were_told(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    told = [Failure(rank, RunError(f"worker {rank} failed")) for rank in (2, 0, 1)]
    for failure in told:
        coordinator.failed(failure)
    assert coordinator.failures() == told
