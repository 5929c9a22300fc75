from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cdt.engine.ranks import Ranks
from cdt.training.meter import Meter


def test_sums_are_over_all_ranks_in_float64(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert rank["spoken"]["sum"] == [0.1 + 0.2, 3e16, 2.0]


def test_rank_0_speaks_for_all(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert rank["spoken"]["from_first"] == {"rank": 0, "array": [1.5, None]}


def test_one_ranks_problem_is_everybodys(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert rank["spoken"]["any"] == [None, "second", "rank 0"]


def test_the_meter_averages_over_steps_and_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        told = rank["spoken"]["meter"]
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


def test_a_rank_on_its_own(alone: Ranks) -> None:
    assert (alone.rank, alone.world, alone.first) == (0, 1, True)
    np.testing.assert_array_equal(alone.sum(np.arange(3)), [0, 1, 2])
    assert alone.from_first("word") == "word"
    assert alone.any_of(None) is None
