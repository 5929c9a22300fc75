"""What two ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scenario import Place, Scenario

from cdt.training.meter import Meter


@dataclass(frozen=True)
class Spoken:
    sum: list[float]
    from_first: dict[str, Any]
    any: list[str | None]
    meter: dict[str, float]


def speak(place: Place) -> Spoken:
    """What the ranks tell each other."""
    ranks = place.ranks
    mine = np.array([0.1, 1e16, float(ranks.rank)]) * (1 + ranks.rank)
    meter = Meter(batch_size=8)
    for loss in (1.0, 2.0):
        meter.count(torch.tensor(loss + 10 * ranks.rank), waited=0.5 + ranks.rank)
    dist.barrier()
    return Spoken(
        sum=ranks.sum(mine).tolist(),
        from_first=ranks.from_first({"rank": ranks.rank, "array": [1.5, None]}),
        any=[
            ranks.any_of(None),
            ranks.any_of("second" if ranks.rank == 1 else None),
            ranks.any_of(f"rank {ranks.rank}"),
        ],
        meter=meter.take(ranks),
    )


SPOKEN = Scenario("spoken", speak)
SCENARIOS = [SPOKEN]
