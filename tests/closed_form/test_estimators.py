"""The estimators of the Lagrangian's gradient have one expectation: exactly, on a finite population.

Each sample has a loss of its own, so the expected loss of an estimator stands for its expected gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.constraints import Constraint, MaxLoss, MinFrequency, Population, Requirements
from cdt.dual import ESTIMATORS, lagrangian

NAMES = ["a", "b", "c", "d"]


@dataclass(frozen=True)
class Case:
    requirements: Requirements
    losses: np.ndarray
    """One per sample [N], nats."""
    lambdas: np.ndarray


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Classes, groups that overlap, and attributes, on a population of every class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    N = draw(st.integers(20, 60))
    classes = rng.permutation(np.concatenate([np.arange(4), rng.integers(0, 4, N - 4)]))
    male = np.concatenate([[1.0], rng.integers(0, 2, N - 1)])
    groups = draw(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), max_size=4))
    constraints: dict[str, Constraint] = {
        f"group {i}": MinFrequency.model_validate({"class": group, "min_frequency": 0.1})
        for i, group in enumerate(groups)
    }
    constraints["male"] = MaxLoss(where={"male": 1.0}, max_loss=3)
    requirements = Requirements.bind(constraints, Population(classes, NAMES, {"male": male}, "x"))
    return Case(requirements, rng.exponential(30, N), rng.exponential(1, len(constraints)))


def expectation_and_variance(case: Case, estimator: str, lambdas: np.ndarray) -> tuple[float, float]:
    """Of the weighted loss of one position, the stream of a position being drawn at random."""
    r = case.requirements
    draws = ESTIMATORS[estimator](lambdas, r)
    base = draws.stream_weights[0] * draws.base_weights[r.cells] * case.losses
    streams = [
        base,
        *(w * case.losses[rows] for w, rows in zip(draws.stream_weights[1:], r.rows.values(), strict=True)),
    ]
    mean = float(draws.probabilities @ [values.mean() for values in streams])
    second = float(draws.probabilities @ [np.square(values).mean() for values in streams])
    return mean, second - mean**2


def lagrangian_over_total(case: Case, lambdas: np.ndarray) -> float:
    """``(loss(q) + sum_i lambda_i loss_i) / (1 + Lambda)``: the Lagrangian without its constant."""
    losses = np.array([case.losses[rows].mean() for rows in case.requirements.rows.values()])
    return lagrangian(case.losses.mean(), losses, np.zeros(len(losses)), lambdas) / (1 + lambdas.sum())


@settings(max_examples=50)
@given(case=cases())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_estimators_have_the_same_expectation(case: Case, estimator: str) -> None:
    mean, _ = expectation_and_variance(case, estimator, case.lambdas)
    assert mean == pytest.approx(lagrangian_over_total(case, case.lambdas), rel=1e-12)


@settings(max_examples=50)
@given(case=cases())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_multipliers_all_are_the_plain_loss(case: Case, estimator: str) -> None:
    mean, variance = expectation_and_variance(case, estimator, np.zeros_like(case.lambdas))
    assert mean == pytest.approx(case.losses.mean(), rel=1e-12)
    assert variance == pytest.approx(case.losses.var(), rel=1e-12)


@settings(max_examples=50)
@given(case=cases(), signs=st.integers(0, 2**8))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_negative_multipliers_take_weight_from_the_base(case: Case, estimator: str, signs: int) -> None:
    """As equalities need them; never below no weight at all."""
    r = case.requirements
    negative = np.array([signs >> i & 1 for i in range(len(case.lambdas))], dtype=bool)
    depth = 0.9 * r.shares / max(1, len(r.names))  # so that overlapping constraints leave something
    lambdas = np.where(negative, -depth, case.lambdas)
    mean, _ = expectation_and_variance(case, estimator, lambdas)
    assert mean == pytest.approx(lagrangian_over_total(case, lambdas), rel=1e-12)
    assert (ESTIMATORS[estimator](lambdas, r).base_weights >= 0).all()


def test_resampling_has_the_least_variance_and_reweighting_a_rare_class_the_most() -> None:
    """Three classes at 0.7 % with a floor of a tenth, losses alike: the order and the growth with lambda."""
    classes = np.repeat(np.arange(4), [979, 7, 7, 7])
    constraints: dict[str, Constraint] = {
        name: MinFrequency.model_validate({"class": name, "min_frequency": 0.1}) for name in NAMES[1:]
    }
    requirements = Requirements.bind(constraints, Population(classes, NAMES, {}, "x"))
    case = Case(requirements, np.random.default_rng(0).exponential(30, 1000), np.zeros(3))
    for rate, worse in ((0.133, 5), (1.0, 50)):
        variances = [expectation_and_variance(case, name, np.full(3, rate))[1] for name in ESTIMATORS]
        resampled, reweighted, separated = variances
        assert resampled <= separated * (1 + 1e-12) < reweighted
        assert reweighted > worse * resampled


@settings(max_examples=50)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_losses_of_constraints_follow_from_cells_whatever_the_mixture_drew(case: Case, seed: int) -> None:
    """Given its cell a draw is uniform in it, so draws of any mixture estimate every loss_i, unweighted by lambda."""
    r = case.requirements
    drawn = np.random.default_rng(seed).integers(1, 50, len(r.cell_shares))  # how often each cell was seen
    totals = drawn * [case.losses[r.cells == k].mean() for k in range(len(drawn))]
    expected = [case.losses[rows].mean() for rows in r.rows.values()]
    np.testing.assert_allclose(r.by_constraint(totals / drawn), expected, rtol=1e-12)
