from __future__ import annotations

from typing import Any

import pytest
from two_ranks import CASES


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_that_of_the_gathered_weights(two_ranks: list[dict[str, Any]], case: str) -> None:
    for rank in two_ranks:
        assert rank["cases"][case]["uncovered_ema"] == []
        assert rank["cases"][case]["ema_error"] < 1e-6
