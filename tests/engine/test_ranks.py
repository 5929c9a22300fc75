from __future__ import annotations

import numpy as np
from ranks_scenarios import SPOKEN
from real_ranks import RealRanks

from cdt.engine.ranks import Ranks, collectives


def test_sums_are_over_all_ranks_in_float64(real_ranks: RealRanks) -> None:
    for spoken in real_ranks(SPOKEN):
        assert spoken.sum == [0.1 + 0.2, 3e16, 2.0]


def test_rank_0_speaks_for_all(real_ranks: RealRanks) -> None:
    for spoken in real_ranks(SPOKEN):
        assert spoken.from_first == {"rank": 0, "array": [1.5, None]}


def test_one_ranks_problem_is_everybodys(real_ranks: RealRanks) -> None:
    for spoken in real_ranks(SPOKEN):
        assert spoken.any == [None, "second", "rank 0"]


def test_what_lies_on_gpus_is_summed_there_and_the_rest_on_the_hosts() -> None:
    assert collectives(gpus=True) == "cpu:gloo,cuda:nccl"
    assert collectives(gpus=False) == "gloo"


def test_a_rank_on_its_own(alone: Ranks) -> None:
    assert (alone.rank, alone.world, alone.first) == (0, 1, True)
    np.testing.assert_array_equal(alone.sum(np.arange(3)), [0, 1, 2])
    assert alone.from_first("word") == "word"
    assert alone.any_of(None) is None
