from __future__ import annotations

import math

import torch
from ranks_scenarios import SPOKEN
from real_ranks import RealRanks

from cdt.engine.ranks import Ranks
from cdt.training.meter import Meter


def test_the_meter_averages_over_steps_and_ranks(real_ranks: RealRanks) -> None:
    for spoken in real_ranks(SPOKEN):
        told = spoken.meter
        assert (told["loss"], told["data_wait_s"]) == (6.5, 1.0)
        assert told["samples_per_s"] > 0


def test_the_meter_begins_anew(alone: Ranks) -> None:
    meter = Meter(batch_size=8)
    meter.count(torch.tensor(2.0), waited=0.25)
    assert meter.take(alone)["loss"] == 2
    anew = meter.take(alone)
    assert math.isnan(anew.pop("loss"))
    assert anew == {"samples_per_s": 0, "data_wait_s": 0}
    meter.count(torch.tensor(1.0), waited=0.5)
    meter.count(torch.tensor(4.0), waited=0.0)
    told = meter.take(alone)
    assert (told["loss"], told["data_wait_s"]) == (2.5, 0.25)
