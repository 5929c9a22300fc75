"""From two ranks to one and back to two, at each ZeRO stage and precision."""

from __future__ import annotations

import pytest
from real_ranks import RealRanks
from small_engine import CASES
from universal_scenarios import GONE_ON, KINDS

from cdt.checkpoints.checkpoint import checkpoint_name


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("world", [1, 2])
def test_weights_and_averages_are_those_of_the_checkpoint(real_ranks: RealRanks, world: int, case: str) -> None:
    results = real_ranks(GONE_ON[world][case])
    assert len(results) == world
    for rank in results:
        assert rank.uncovered == []
        assert rank.loaded
        assert rank.loaded_ema
        assert rank.forward_error < 1e-6


@pytest.mark.parametrize("case", KINDS)
def test_it_ends_where_two_ranks_end_that_were_never_changed(real_ranks: RealRanks, case: str) -> None:
    """The optimiser's moments went on, too: without them, the first steps would be of another size."""
    _, precision, _ = CASES[case]
    for rank in real_ranks(GONE_ON[2][case]):
        assert rank.distance is not None
        assert rank.ema_distance is not None
        assert 0 < rank.distance < (1e-5 if precision == "fp32" else 1e-2)
        assert rank.ema_distance < (1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("case", KINDS)
def test_the_checkpoint_stays_as_it_was(real_ranks: RealRanks, case: str) -> None:
    assert all(rank.damage is None for world in (1, 2) for rank in real_ranks(GONE_ON[world][case]))


@pytest.mark.parametrize("case", KINDS)
def test_what_does_not_depend_on_the_ranks_is_not_converted(real_ranks: RealRanks, case: str) -> None:
    stage, precision, _ = CASES[case]
    steps = [] if stage == 0 else [10, 15] if precision == "fp32" else [2, 3]
    found = real_ranks(GONE_ON[2][case])[0].converted
    assert [name.split(".")[1] for name in found] == [checkpoint_name(step) for step in steps]
    assert all(name.endswith(".universal") for name in found)
