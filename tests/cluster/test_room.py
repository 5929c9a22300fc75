"""How many workers an attempt has, on a cluster whose room is told by hand."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tiny

from cdt.cluster import room
from cdt.cluster.room import Workers, wait_for_room
from cdt.config import RunConfig
from cdt.errors import RunError


def config(**run: int) -> RunConfig:
    """Of batches of 16."""
    return tiny.config(Path("shards"), Path("runs/x"), run=run)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots that are free at one look after the other; the last stays."""
    slots: list[int] = []

    def missing(workers: int, kind: str, patience_s: float, leaving: threading.Event) -> str | None:
        if workers <= slots[0]:
            return None
        if len(slots) > 1:
            slots.pop(0)
        return None if workers <= slots[0] and patience_s > room.BUSY_S else f"asked for {workers}"

    monkeypatch.setattr(room, "missing_slots", missing)
    monkeypatch.setattr(room, "free_slots", lambda kind: slots[0])
    return slots


@pytest.mark.parametrize(
    ("run", "slots", "number", "told"),
    [
        ({"workers": 4}, [4], 4, []),
        ({"workers": 3}, [4], 2, ["2 of 3 workers are used: the batch of 16 samples is not divisible by 3"]),
        ({"workers": 4, "min_workers": 2}, [3], 2, ["2 of 4 workers are used: there are resources for 3"]),
        ({"workers": 4, "min_workers": 1}, [1], 1, ["1 of 4 workers are used: there are resources for 1"]),
        ({"workers": 4}, [2, 2, 4], 4, ["asked for 4; waiting up to 10 minutes for more"]),
    ],
)
def test_as_many_workers_as_there_is_room_for(
    free: list[int], run: dict[str, int], slots: list[int], number: int, told: list[str]
) -> None:
    free += slots
    said: list[str] = []
    workers = wait_for_room(config(**run), "CPU", lambda kind, text: said.append(text), threading.Event())
    assert workers == Workers(number, "CPU")
    assert said == told


def test_without_room_for_the_least_the_run_ends(free: list[int]) -> None:
    free.append(1)
    with pytest.raises(RunError, match=r"asked for 4, after 10 minutes \(run.patience_minutes\)"):
        wait_for_room(config(workers=4, min_workers=2), "CPU", lambda kind, text: None, threading.Event())


def test_a_notice_to_leave_ends_the_wait(free: list[int]) -> None:
    free.append(1)
    given = threading.Event()
    assert wait_for_room(config(workers=4), "CPU", lambda kind, text: given.set(), given) is None
