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
from cdt.dual import lagrangian, mixture_probabilities, sample_weights

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


def resample(case: Case) -> float:
    """One batch, its streams drawn from the mixture; weight 1."""
    streams = [case.losses, *(case.losses[rows] for rows in case.requirements.rows.values())]
    return float(mixture_probabilities(case.lambdas) @ [losses.mean() for losses in streams])


def reweight(case: Case) -> float:
    """One batch from the base, each sample weighted by its cell."""
    r = case.requirements
    weights = sample_weights(case.lambdas, r.shares, r.member_cells, r.member_constraints, len(r.cell_shares))
    return float((weights[r.cells] * case.losses).mean())


def separate(case: Case) -> float:
    """A batch from the base and one per constraint, as the paper's pseudo-code reads; the constant left out."""
    losses = np.array([case.losses[rows].mean() for rows in case.requirements.rows.values()])
    value = lagrangian(case.losses.mean(), losses, np.zeros(len(losses)), case.lambdas)
    return value / (1 + case.lambdas.sum())


@settings(max_examples=50)
@given(case=cases())
def test_all_estimators_have_the_same_expectation(case: Case) -> None:
    expected = separate(case)
    assert resample(case) == pytest.approx(expected, rel=1e-12)
    assert reweight(case) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50)
@given(case=cases())
def test_without_multipliers_all_are_the_plain_loss(case: Case) -> None:
    plain = Case(case.requirements, case.losses, np.zeros_like(case.lambdas))
    for estimator in (resample, reweight, separate):
        assert estimator(plain) == pytest.approx(case.losses.mean(), rel=1e-12)


@settings(max_examples=50)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_losses_of_constraints_follow_from_cells_whatever_the_mixture_drew(case: Case, seed: int) -> None:
    """Given its cell a draw is uniform in it, so draws of any mixture estimate every loss_i, unweighted by lambda."""
    r = case.requirements
    drawn = np.random.default_rng(seed).integers(1, 50, len(r.cell_shares))  # how often each cell was seen
    totals = drawn * [case.losses[r.cells == k].mean() for k in range(len(drawn))]
    expected = [case.losses[rows].mean() for rows in r.rows.values()]
    np.testing.assert_allclose(r.by_constraint(totals / drawn), expected, rtol=1e-12)
