"""From two ranks to one and back to two, at each ZeRO stage and precision."""

from __future__ import annotations

from typing import Any

import pytest
from small_engine import CASES

from cdt.checkpoints.checkpoint import checkpoint_name

KINDS = [name for name, (_, _, accumulation) in CASES.items() if accumulation == 1]


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("world", [1, 2])
def test_weights_and_averages_are_those_of_the_checkpoint(
    other_ranks: dict[int, list[dict[str, Any]]], world: int, case: str
) -> None:
    for rank in other_ranks[world]:
        told = rank[case]
        assert told["uncovered"] == []
        assert told["loaded"]
        assert told["loaded_ema"]
        assert told["forward_error"] < 1e-6


@pytest.mark.parametrize("case", KINDS)
def test_it_ends_where_two_ranks_end_that_were_never_changed(
    other_ranks: dict[int, list[dict[str, Any]]], case: str
) -> None:
    """The optimiser's moments went on, too: without them, the first steps would be of another size."""
    _, precision, _ = CASES[case]
    for rank in other_ranks[2]:
        assert 0 < rank[case]["distance"] < (1e-5 if precision == "fp32" else 1e-2)
        assert rank[case]["ema_distance"] < (1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("case", KINDS)
def test_the_checkpoint_stays_as_it_was(other_ranks: dict[int, list[dict[str, Any]]], case: str) -> None:
    assert all(rank[case]["damage"] is None for ranks in other_ranks.values() for rank in ranks)


def test_what_does_not_depend_on_the_ranks_is_not_converted(other_ranks: dict[int, list[dict[str, Any]]]) -> None:
    for case in KINDS:
        stage, precision, _ = CASES[case]
        steps = [] if stage == 0 else [10, 15] if precision == "fp32" else [2, 3]
        found = other_ranks[2][0][case]["converted"]
        assert [name.split(".")[1] for name in found] == [checkpoint_name(step) for step in steps]
        assert all(name.endswith(".universal") for name in found)
