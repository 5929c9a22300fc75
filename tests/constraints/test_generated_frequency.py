"""Floors on the share that a classifier sees: budget, threshold, who judges what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cdt.constraints import Calibration, GeneratedFrequency, GeneratedShare, Labelled


def constraint(tree: dict[str, Any], share: float = 0.1) -> GeneratedFrequency:
    return GeneratedFrequency.model_validate({"generated_frequency": {"min": share, "classifier": "a.pt"}, **tree})


@given(share=st.floats(0.001, 0.999), warm=st.floats(0, 10))
def test_the_threshold_is_the_loss_of_the_floor_whatever_the_warm_model_does(share: float, warm: float) -> None:
    """The loss is minus the log of the share, so that it is satisfied exactly when the share is at least F."""
    wanted = constraint({"class": 4}, share)
    threshold = wanted.threshold(Calibration(warm, math.exp(-warm), window=0.0, share_measured=True))
    assert threshold == wanted.budget_in_nats == math.log(1 / share)
    for seen in (0.9 * share, min(1.0, 1.1 * share)):
        assert (-math.log(seen) <= threshold) == (seen >= share)


def test_its_classifier_judges_it_and_no_reference_is_needed() -> None:
    wanted = constraint({"class": 4}, 0.2)
    assert wanted.statistic == wanted.warm_share == GeneratedShare(Path("a.pt"), Labelled(("4",), {}))
    assert (wanted.compared_with, wanted.share) == (None, 0.2)


def test_in_words() -> None:
    words = "class 4 or 9: at least 0.1 of the generated samples, as a classifier sees them"
    assert constraint({"class": [4, 9]}).describe() == words
