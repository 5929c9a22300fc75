"""Absolute thresholds."""

from __future__ import annotations

from cdt.constraints import Calibration, MaxLoss


def test_the_threshold_is_what_the_user_wrote_whatever_was_calibrated() -> None:
    constraint = MaxLoss.model_validate({"class": 4, "max_loss": 12.5})
    assert constraint.threshold(Calibration(loss=20.0, share=0.01)) == 12.5
    assert constraint.threshold(Calibration(loss=2.0, share=0.9)) == 12.5


def test_in_words() -> None:
    constraint = MaxLoss(where={"male": 0.0}, max_loss=12.5)
    assert constraint.describe() == "male = 0: denoising loss at most 12.5 nats"
    assert constraint.budget_in_nats is None
