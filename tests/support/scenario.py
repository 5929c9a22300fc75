"""Scenarios: functions that run on real ranks, beside the tests that judge what they return.

Consecutive scenarios for the same number of ranks share one start of the processes (``rank.py``). A scenario that
raises on one rank fails the tests that ask for it, and no others. Then the processes end, since their collectives may
no longer match, and new ones go on with the scenario after it.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cdt.engine.ranks import Ranks

Result = TypeVar("Result")

TESTS = Path(__file__).parent.parent
MODULES = {
    "ranks_scenarios": "engine",
    "probe_scenarios": "measure",
    "data_audit_scenarios": "training",
    "engine_scenarios": "engine",
    "checkpoint_scenarios": "checkpoints",
    "universal_scenarios": "checkpoints",
}
"""Modules with a list SCENARIOS, in the order in which they run, and the folder of ``tests`` that each stands in."""


@dataclass(frozen=True)
class Place:
    """Where a scenario runs."""

    ranks: Ranks
    folder: Path
    """Shared by all ranks and all scenarios."""
    shards: Path
    """The digits."""


@dataclass(frozen=True)
class Scenario(Generic[Result]):
    """``run`` is called on all ranks at once; its result is pickled."""

    name: str
    run: Callable[[Place], Result]
    world: int = 2
    """The number of ranks."""

    def outcome_file(self, folder: Path, rank: int) -> Path:
        return folder / f"{self.name}, rank {rank}.outcome"


@dataclass(frozen=True)
class Outcome:
    """What a scenario came to on one rank."""

    result: Any = None
    failure: str | None = None
    """Its traceback; None where it returned."""

    def write(self, path: Path) -> None:
        """Complete or not at all: the other rank looks for it."""
        partial = path.with_suffix(".partial")
        partial.write_bytes(pickle.dumps((self.result, self.failure)))
        partial.rename(path)

    @classmethod
    def read(cls, path: Path) -> Outcome:
        return cls(*pickle.loads(path.read_bytes()))


def all_scenarios() -> list[Scenario[Any]]:
    """In the order in which they run."""
    for folder in MODULES.values():
        if (path := str(TESTS / folder)) not in sys.path:
            sys.path.append(path)
    return [scenario for module in MODULES for scenario in importlib.import_module(module).SCENARIOS]
