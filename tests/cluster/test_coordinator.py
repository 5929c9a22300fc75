"""The coordinator as Ray runs it, killed around a dual step: each period has one, and always the same."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from cdt.cluster.coordinator import RemoteCoordinator
from cdt.cluster.session import local_ray
from cdt.dual import ALARMS, DualProblem, DualState, Sums, dual_step, replayed

pytestmark = pytest.mark.slow  # a start of Ray
PERIODS = 3


@dataclass(frozen=True)
class Mined(DualState):
    """A state that kills the process, once, which is about to compute with it, computes with it, or answers with it."""

    moment: str
    fuse: Path
    home: int
    """The process that is spared."""

    def _blow(self, moment: str) -> None:
        if moment == self.moment and os.getpid() != self.home and self.fuse.exists():
            self.fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def __setstate__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)
        self._blow("before")

    def __post_init__(self) -> None:
        self._blow("during")

    def __getstate__(self) -> dict[str, object]:
        self._blow("after")
        return self.__dict__


PROBLEM = DualProblem(
    names=("four", "five"),
    shares=np.array([0.1, 0.2]),
    baseline=np.array([30.0, 40.0]),
    thresholds=np.array([28.0, 41.0]),
    rules=np.array(["mass", "ascent"]),
    etas=np.array([0.02, 0.01]),
    equal=np.zeros(2, dtype=bool),
    links=np.array(["identity", "identity"]),
    actuators=np.array(["draw", "draw"]),
    kp=np.zeros(2),
    cap=1e6,
)
FIRST = DualState.first(np.array([0.1, 0.2]), alarms=len(ALARMS))


def measured(period: int) -> Sums:
    n, mean = np.full(2, 8.0), np.array([-1.0 + period, 0.5 * period])
    return Sums(n * mean, n * (mean**2 + 1), n)


def values(state: DualState) -> list[list[float]]:
    return [np.atleast_1d(getattr(state, field.name)).ravel().tolist() for field in fields(DualState)]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # what the coordinator gets of it, it cannot import
    with local_ray():
        yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize(("moment", "rows"), [("never", 1), ("before", 1), ("during", 1), ("after", 2)])
def test_a_coordinator_that_dies_around_its_answer_gives_the_same_one(
    ray: None, tmp_path: Path, moment: str, rows: int
) -> None:
    coordinator, fuse = RemoteCoordinator.start(tmp_path), tmp_path / "fuse"
    begun = FIRST
    try:
        state: DualState = Mined(**vars(FIRST), moment=moment, fuse=fuse, home=os.getpid())
        for period in range(PERIODS):
            if period == 1:
                fuse.touch()
            state = coordinator.dual_step(4 * period, PROBLEM, state, measured(period))
            begun = dual_step(PROBLEM, begun, measured(period))
            np.testing.assert_equal(values(state), values(begun))
    finally:
        coordinator.stop()
    assert state.period == PERIODS
    assert fuse.exists() == (moment == "never"), "it was killed, once"
    journal = [json.loads(line) for line in (tmp_path / "dual.jsonl").read_text().splitlines()]
    assert [sum(row["step"] == 4 * period for row in journal) for period in range(PERIODS)] == [2, 2 * rows, 2]
    assert replayed(journal) == ([4] if rows > 1 else [], [])
