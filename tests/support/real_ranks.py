"""Starts real ranks, and keeps what they found for the tests that judge it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scenario import Outcome, Result, Scenario, all_scenarios

from cdt.cluster.session import set_environment

SUPPORT = Path(__file__).parent
TIMEOUT_S = 600
"""For all that the processes do; DeepSpeed's operator may have to be built first."""


def start_ranks(script: str, world: int, folder: Path, *arguments: object) -> tuple[list[int], list[str]]:
    """Exit status and output of each of the processes of a script: started together as the ranks of one group.

    Those that run longer than ``TIMEOUT_S`` are killed: their status is -9.
    """
    set_environment()
    processes, outputs = [], [folder / f"{script} {world} {rank}.txt" for rank in range(world)]
    for rank, path in enumerate(outputs):
        environment = os.environ | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
        command = [sys.executable, str(SUPPORT / script), str(rank), *map(str, arguments)]
        with path.open("w") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    end, statuses = time.monotonic() + TIMEOUT_S, []
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
    finally:
        for process in processes:
            process.kill()
            statuses.append(process.wait())
    return statuses, [path.read_text() for path in outputs]


class TwoRanks:
    """What scenarios came to on two real ranks."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder, self.printed = folder, ["", ""]
        """``printed``: the output of each rank, besides tracebacks of scenarios."""
        self._outcomes: dict[str, list[Outcome]] = {}
        left = all_scenarios()
        while left:
            statuses, printed = start_ranks("two_ranks.py", 2, folder, folder, shards, f"store, {len(left)} left")
            self.printed = [before + text for before, text in zip(self.printed, printed, strict=True)]
            left = self._collect(left, f"processes ended with {statuses}:\n" + "\n\n".join(printed)[-3000:])

    def _collect(self, left: list[Scenario[Any]], ended: str) -> list[Scenario[Any]]:
        """Takes the outcomes of one start. Returns the scenarios that are still to run: those after one that failed."""
        for place, scenario in enumerate(left):
            files = [scenario.outcome_file(self.folder, rank) for rank in range(2)]
            for file in files:
                if not file.exists():
                    Outcome(failure=f"{scenario.name}: {ended}").write(file)
            self._outcomes[scenario.name] = outcomes = [Outcome.read(file) for file in files]
            if any(outcome.failure for outcome in outcomes):
                return left[place + 1 :]
        return []

    def __call__(self, scenario: Scenario[Result]) -> list[Result]:
        """Its result on each rank. Fails the test where it raised on either."""
        outcomes = self._outcomes[scenario.name]
        if failures := [f"rank {rank}:\n{told.failure}" for rank, told in enumerate(outcomes) if told.failure]:
            pytest.fail("\n\n".join(failures), pytrace=False)
        return [outcome.result for outcome in outcomes]
