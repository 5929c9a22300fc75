"""Floors on shares: budget, log-ratio threshold, words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.constraints import Calibration, MinFrequency

shares = st.floats(0.001, 0.999)


@given(floor=shares, share=shares, loss=st.floats(0, 1000))
def test_the_threshold_is_the_loss_at_which_the_share_is_the_floor(floor: float, share: float, loss: float) -> None:
    """``loss_i = floor_i + log(1 / share)``, whatever the irreducible part floor_i is."""
    constraint = MinFrequency.model_validate({"class": 4, "min_frequency": floor})
    irreducible = loss - math.log(1 / share)
    assert constraint.threshold(Calibration(loss, share)) == pytest.approx(irreducible + math.log(1 / floor))
    assert constraint.threshold(Calibration(loss, share)) == pytest.approx(irreducible + constraint.budget_in_nats)


def test_a_share_above_the_floor_may_be_lost_down_to_it() -> None:
    constraint = MinFrequency.model_validate({"class": 4, "min_frequency": 0.1})
    assert constraint.threshold(Calibration(loss=20.0, share=0.2)) == pytest.approx(20 + math.log(2))
    assert constraint.threshold(Calibration(loss=20.0, share=0.01)) == pytest.approx(20 - math.log(10))


def test_in_words() -> None:
    tree = {"class": [4, 9], "where": {"thick": 1}, "min_frequency": 0.1}
    constraint = MinFrequency.model_validate(tree)
    assert constraint.describe() == "class 4 or 9 and thick = 1: at least 0.1 of the generated samples"
