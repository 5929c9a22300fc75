"""The prior constraint: budget, threshold, step, whose samples it speaks of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cdt.constraints import (
    AnyConstraint,
    Calibration,
    DenoisingLoss,
    MaxLoss,
    Population,
    Prior,
    Requirements,
    TeacherDistance,
)
from cdt.dual.lagrangian import resample

BUDGETS = st.floats(1e-3, 20)
NEW = Population(np.array([0, 1, 1]), ["a", "b"], {}, "new data", replay=range(3, 8))
"""Three samples of new data, the objective; five of the pretrained model."""
OLD = Population(np.array([0, 1, 1]), ["a", "b"], {}, "new data", first=5, replay=range(5))
"""The same where the pretrained model is the objective."""


def prior(budget: float = 0.5, **settings: Any) -> Prior:
    return Prior.model_validate({"prior": {"max_kl": budget, **settings}})


@given(budget=BUDGETS, floor=st.floats(0, 100))
def test_the_floor_is_zero_or_the_pretrained_model_s_own_loss(budget: float, floor: float) -> None:
    calibration = Calibration(loss=3.0, share=0.0, window=0.5, reference=floor)
    assert prior(budget).threshold(calibration) == budget
    assert prior(budget, statistic="loss").threshold(calibration) == floor + budget
    assert (prior().statistic, prior().compared_with) == (TeacherDistance(), None)
    assert (prior(statistic="loss").statistic, prior(statistic="loss").compared_with) == (DenoisingLoss(), "init")


@given(budget=BUDGETS)
def test_its_step_is_a_tenth_of_newton_s_at_the_budget(budget: float) -> None:
    """Of ``-log f = log(1 + 1 / lambda)``, the divergence that supports apart leave: lambda closes a tenth of a gap."""

    def divergence(multiplier: float) -> float:
        return math.log1p(1 / multiplier)

    there = 1 / math.expm1(budget)
    assert divergence(there) == pytest.approx(budget)
    gap = 1e-4 * there
    moved = there + gap + prior(budget).eta * (divergence(there + gap) - budget)
    assert moved - there == pytest.approx(0.9 * gap, rel=0.01)


@pytest.mark.parametrize("budget", [712.0, 1e12])
def test_a_budget_beyond_all_floats_still_has_a_step(budget: float) -> None:
    assert 0 < prior(budget).eta < 1e-300


def test_a_budget_in_a_configuration() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AnyConstraint)
    found = adapter.validate_python({"prior": {"max_kl": 0.5}})
    assert isinstance(found, Prior)
    assert (found.window, found.budget_path, found.budget_in_nats, found.share) == ("auto", "prior.max_kl", 0.5, None)
    assert found.describe() == "what the pretrained model generates: within 0.5 nats"
    for tree, reason in (
        ({"prior": {"max_kl": 0}}, "greater than 0"),
        ({"prior": {"max_kl": math.inf}}, "finite"),
        ({"prior": {"max_kl": 1, "statistic": "both"}}, "'distance' or 'loss'"),
        ({"prior": {"max_kl": 1}, "class": 4}, "drop class and where"),
        ({"prior": {"max_kl": 1}, "where": {"male": 1}}, "drop class and where"),
        ({"prior": {"max_kl": 1}, "max_kl": 1}, "exactly one budget"),
    ):
        with pytest.raises(ValidationError, match=reason):
            adapter.validate_python(tree)


def test_replayed_samples_lie_outside_of_the_new_data() -> None:
    b = MaxLoss.model_validate({"class": "b", "max_loss": 3})
    bound = Requirements.bind({"old": prior(), "b": b}, NEW)
    assert bound.base == 3
    assert {name: rows.tolist() for name, rows in bound.rows.items()} == {"old": [3, 4, 5, 6, 7], "b": [1, 2]}
    assert bound.shares.tolist() == [0, 2 / 3]
    replay, a, b_only = bound.cells[3], bound.cells[0], bound.cells[1]
    assert len({replay, a, b_only}) == 3
    assert bound.cells.tolist() == [a, b_only, b_only, *[replay] * 5]
    assert bound.replayed.tolist() == [cell == replay for cell in range(3)]
    assert bound.cell_shares[[replay, a, b_only]].tolist() == [0, 1 / 3, 2 / 3]
    values = np.zeros(3)
    values[[replay, a, b_only]] = [7, 1, 2]
    assert bound.by_constraint(values).tolist() == [7, 2]


def test_where_the_pretrained_model_is_the_objective_new_data_lie_outside() -> None:
    b = MaxLoss.model_validate({"class": "b", "max_loss": 3})
    bound = Requirements.bind({"b": b}, OLD)
    assert bound.base == 5
    assert bound.rows["b"].tolist() == [6, 7]
    assert bound.shares.tolist() == [0]
    assert bound.replayed[bound.cells].tolist() == [True] * 5 + [False] * 3
    assert bound.cell_shares[bound.cells[0]] == 1


@given(multiplier=st.floats(0, 100))
def test_its_samples_are_drawn_with_lambda_and_weigh_like_all_others(multiplier: float) -> None:
    bound = Requirements.bind({"old": prior()}, NEW)
    draws = resample(np.array([multiplier]), bound)
    assert draws.probabilities[1] == pytest.approx(multiplier / (1 + multiplier))
    np.testing.assert_allclose(draws.stream_weights, 1)
    np.testing.assert_allclose(draws.base_weights, 1)
