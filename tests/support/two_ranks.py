"""One of two real ranks, which run scenarios together: ``two_ranks.py RANK FOLDER SHARDS STORE``.

Runs those that have no outcome in FOLDER yet, and ends after the first that fails on either rank.
"""

from __future__ import annotations

import datetime as dt
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
    """The partner's outcome; a failure where the partner does not come to one."""
    end = time.monotonic() + PARTNER_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > end:
            return Outcome(failure=f"the other rank came to no end in {PARTNER_TIMEOUT_S} s")
        time.sleep(0.002)
    return Outcome.read(path)


def main(rank: int, folder: Path, shards: Path, store: str) -> None:
    torch.set_num_threads(1)
    timeout = dt.timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group("gloo", store=FileStore(str(folder / store), 2), rank=rank, world_size=2, timeout=timeout)
    start_deepspeed()
    place = Place(Ranks.current(), folder, shards)
    for scenario in all_scenarios():
        if scenario.outcome_file(folder, rank).exists():
            continue
        outcome = outcome_of(scenario, place)
        outcome.write(scenario.outcome_file(folder, rank))
        if outcome.failure or awaited(scenario.outcome_file(folder, 1 - rank)).failure:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
