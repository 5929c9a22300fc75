"""Budgets on the loss itself: absolute, above a reference model's floor, relative to a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.constraints import Calibration, Constraint, MaxExcess, MaxKl, MaxLoss

losses = st.floats(0, 1000)


def calibrated(loss: float, reference: float | None = None, share: float = 0.1) -> Calibration:
    return Calibration(loss, share, window=10.0, reference=reference)


def test_the_threshold_is_what_the_user_wrote_whatever_was_calibrated() -> None:
    constraint = MaxLoss.model_validate({"class": 4, "max_loss": 12.5})
    assert constraint.threshold(calibrated(20.0, share=0.01)) == 12.5
    assert constraint.threshold(calibrated(2.0, share=0.9)) == 12.5


@given(budget=st.floats(1e-3, 100), floor=losses, warm=losses)
def test_a_divergence_is_counted_from_the_floor_that_the_reference_reaches(
    budget: float, floor: float, warm: float
) -> None:
    constraint = MaxKl.model_validate({"class": 4, "max_kl": budget, "reference": "runs/four"})
    assert constraint.threshold(calibrated(warm, reference=floor)) == pytest.approx(floor + budget)
    assert constraint.budget_in_nats == budget


@given(excess=st.floats(-0.99, 10), warm=losses, other=losses)
def test_an_excess_is_a_fraction_of_the_reference_s_loss(excess: float, warm: float, other: float) -> None:
    """By default that of the warm model on the same samples; whatever else the reference is, it was measured."""
    tree = {"class": 4, "max_excess": excess}
    assert MaxExcess.model_validate(tree).threshold(calibrated(warm)) == pytest.approx((1 + excess) * warm)
    for reference in ("base", "runs/four"):
        constraint = MaxExcess.model_validate({**tree, "reference": reference})
        assert constraint.threshold(calibrated(warm, reference=other)) == pytest.approx((1 + excess) * other)


@pytest.mark.parametrize(
    ("constraint", "compared_with"),
    [
        (MaxLoss.model_validate({"class": 4, "max_loss": 3}), None),
        (MaxKl.model_validate({"class": 4, "max_kl": 1, "reference": "runs/four"}), Path("runs/four")),
        (MaxExcess.model_validate({"class": 4, "max_excess": 0.1}), "warm"),
        (MaxExcess.model_validate({"class": 4, "max_excess": 0.1, "reference": "base"}), "base"),
        (MaxExcess.model_validate({"class": 4, "max_excess": 0.1, "reference": "runs/four"}), Path("runs/four")),
    ],
)
def test_what_has_to_be_measured_besides(constraint: Constraint, compared_with: Path | str | None) -> None:
    assert constraint.compared_with == compared_with
    assert type(constraint.compared_with) is not str or compared_with in ("warm", "base")
    assert constraint.warm_share is None
    assert constraint.share is None


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (MaxLoss(where={"male": 0.0}, max_loss=12.5), "male = 0: denoising loss at most 12.5 nats"),
        (
            MaxKl.model_validate({"class": 4, "max_kl": 0.2, "reference": "runs/four"}),
            "class 4: within 0.2 nats of four",
        ),
        (
            MaxExcess.model_validate({"class": 4, "max_excess": 0.05}),
            "class 4: denoising loss at most 1.05 times the warm model's",
        ),
        (
            MaxExcess.model_validate({"class": ["4", "7"], "max_excess": -0.1, "reference": "base"}),
            "class 4 or 7: denoising loss at most 0.9 times that of all data",
        ),
        (
            MaxExcess.model_validate({"class": 4, "max_excess": 1, "reference": "runs/four"}),
            "class 4: denoising loss at most 2 times four's",
        ),
    ],
)
def test_in_words(constraint: Constraint, words: str) -> None:
    assert constraint.describe() == words


@pytest.mark.parametrize("tree", [{"max_loss": 3.0}, {"max_excess": 0.1}])
def test_losses_and_excesses_state_no_divergence(tree: dict[str, Any]) -> None:
    kind = MaxLoss if "max_loss" in tree else MaxExcess
    assert kind.model_validate({"class": 4, **tree}).budget_in_nats is None
