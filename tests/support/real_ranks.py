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

SCRIPT = Path(__file__).parent / "rank.py"
TIMEOUT_S = 600
"""For all that the processes do; DeepSpeed's operator may have to be built first."""


class RealRanks:
    """The results of all scenarios."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        self.printed: list[str] = []
        """The output of each process, besides tracebacks of scenarios."""
        self._shards, self._outcomes = shards, dict[str, list[Outcome]]()
        left = all_scenarios()
        while left:
            left = self._start(left)

    def _start(self, left: list[Scenario[Any]]) -> list[Scenario[Any]]:
        """Runs the first of them in new processes, and those after it up to a failure or another number of ranks.

        Returns those that are still to run.
        """
        world = left[0].world
        statuses, printed = self._run_processes(world, f"{len(left)} left")
        self.printed += printed
        for place, scenario in enumerate(left):
            if scenario.world != world:
                return left[place:]
            files = [scenario.outcome_file(self.folder, rank) for rank in range(world)]
            for file in files:
                if not file.exists():
                    ended = f"processes ended with {statuses}:\n" + "\n\n".join(printed)[-3000:]
                    Outcome(failure=f"{scenario.name}: {ended}").write(file)
            self._outcomes[scenario.name] = outcomes = [Outcome.read(file) for file in files]
            if any(outcome.failure for outcome in outcomes):
                return left[place + 1 :]
        return []

    def _run_processes(self, world: int, name: str) -> tuple[list[int], list[str]]:
        """Exit status and output of each rank. Those that run longer than ``TIMEOUT_S`` are killed: status -9."""
        set_environment()
        processes, outputs = [], [self.folder / f"{name}, rank {rank}.txt" for rank in range(world)]
        for rank, path in enumerate(outputs):
            environment = os.environ | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
            command = [sys.executable, str(SCRIPT), str(rank), str(world), str(self.folder), str(self._shards), name]
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

    def __call__(self, scenario: Scenario[Result]) -> list[Result]:
        """Its result on each rank. Fails the test if it raised on any."""
        outcomes = self._outcomes[scenario.name]
        if failures := [f"rank {rank}:\n{told.failure}" for rank, told in enumerate(outcomes) if told.failure]:
            pytest.fail("\n\n".join(failures), pytrace=False)
        return [outcome.result for outcome in outcomes]
