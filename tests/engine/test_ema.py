from __future__ import annotations

import pytest
from engine_scenarios import ENGINE
from real_ranks import RealRanks


@pytest.mark.parametrize("case", ENGINE)
def test_the_average_is_that_of_the_gathered_weights(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.uncovered_ema == []
        assert told.ema_error < 1e-6
