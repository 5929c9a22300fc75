"""One of the real ranks that run scenarios together: ``rank.py RANK WORLD FOLDER SHARDS STORE``.

Runs those that have no outcome in FOLDER yet, up to one for another number of ranks. Ends after the first that fails on
any rank.
"""

from __future__ import annotations

import datetime as dt
import itertools
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scenario import Outcome, Place, Scenario, all_scenarios
from torch._C._distributed_c10d import FileStore

from cdt.engine.engine import start_deepspeed
from cdt.engine.ranks import Ranks

COLLECTIVE_TIMEOUT_S = 60
"""A rank that waits for so long in a collective raises."""
PARTNER_TIMEOUT_S = 90


def outcome_of(scenario: Scenario[Any], place: Place) -> Outcome:
    try:
        return Outcome(scenario.run(place))
    except Exception:
        return Outcome(failure=traceback.format_exc())


def awaited(path: Path) -> Outcome:
    """Another rank's outcome; a failure if there is none in time."""
    end = time.monotonic() + PARTNER_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > end:
            return Outcome(failure=f"another rank did not finish within {PARTNER_TIMEOUT_S} s")
        time.sleep(0.002)
    return Outcome.read(path)


def main(rank: int, world: int, folder: Path, shards: Path, store: str) -> None:
    torch.set_num_threads(1)
    # Looked up before the group forms: afterwards rank 0 may be ahead.
    left = [scenario for scenario in all_scenarios() if not scenario.outcome_file(folder, 0).exists()]
    timeout, file = dt.timedelta(seconds=COLLECTIVE_TIMEOUT_S), FileStore(str(folder / store), world)
    dist.init_process_group("gloo", store=file, rank=rank, world_size=world, timeout=timeout)
    start_deepspeed()
    place = Place(Ranks.current(), folder, shards)
    for scenario in itertools.takewhile(lambda scenario: scenario.world == world, left):
        outcome = outcome_of(scenario, place)
        outcome.write(scenario.outcome_file(folder, rank))
        others = [awaited(scenario.outcome_file(folder, other)) for other in range(world) if other != rank]
        if any(outcome.failure for outcome in (outcome, *others)):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
