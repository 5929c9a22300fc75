"""Floors on shares and exact shares: budget, log-ratio threshold, words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.constraints import Calibration, DenoisingLoss, Frequency, GeneratedShare, Labelled, MinFrequency

KINDS = {"min_frequency": MinFrequency, "frequency": Frequency}
shares = st.floats(0.001, 0.999)


def wanted(budget: str, share: float, **tree: Any) -> MinFrequency | Frequency:
    return KINDS[budget].model_validate({"class": 4, budget: share, **tree})


@pytest.mark.parametrize("budget", KINDS)
@given(floor=shares, share=shares, loss=st.floats(0, 1000), measured=st.booleans())
def test_the_threshold_is_the_loss_at_which_the_share_is_the_floor(
    budget: str, floor: float, share: float, loss: float, measured: bool
) -> None:
    """``loss_i = floor_i + log(1 / share)``, whatever the irreducible part floor_i is."""
    constraint = wanted(budget, floor)
    irreducible = loss - math.log(1 / share)
    threshold = constraint.threshold(Calibration(loss, share, window=-2.0, share_measured=measured))
    assert threshold == pytest.approx(irreducible + math.log(1 / floor))
    assert constraint.budget_in_nats == pytest.approx(math.log(1 / floor))
    assert constraint.share == floor


@pytest.mark.parametrize("budget", KINDS)
def test_a_share_above_the_floor_may_be_lost_down_to_it(budget: str) -> None:
    constraint = wanted(budget, 0.1)
    above, below = (Calibration(loss=20.0, share=share, window=-2.0) for share in (0.2, 0.01))
    assert constraint.threshold(above) == pytest.approx(20 + math.log(2))
    assert constraint.threshold(below) == pytest.approx(20 - math.log(10))


@pytest.mark.parametrize("budget", KINDS)
def test_a_classifier_measures_the_warm_model_s_share_where_one_is_named(budget: str) -> None:
    assert wanted(budget, 0.1).warm_share is None
    judged = wanted(budget, 0.1, classifier="judges/a.pt")
    assert judged.warm_share == GeneratedShare(Path("judges/a.pt"), Labelled(judged.classes, judged.where))
    assert judged.statistic == DenoisingLoss()
    assert wanted(budget, 0.1).compared_with is None


def test_in_words() -> None:
    tree = {"class": [4, 9], "where": {"thick": 1}, "min_frequency": 0.1}
    constraint = MinFrequency.model_validate(tree)
    assert constraint.describe() == "class 4 or 9 and thick = 1: at least 0.1 of the generated samples"
    assert wanted("frequency", 0.25).describe() == "class 4: 0.25 of the generated samples"
