"""Multipliers as proportions of streams and as weights of samples: two ways to the same expectation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.dual import lagrangian, mixture_probabilities
from cdt.dual.lagrangian import sample_weights


class Data(NamedTuple):
    """What the estimators know of the data."""

    shares: np.ndarray
    cell_shares: np.ndarray
    member_cells: np.ndarray
    member_constraints: np.ndarray


multipliers = st.lists(st.floats(0, 20), max_size=6).map(np.array)


@given(lambdas=multipliers)
def test_the_base_is_drawn_in_proportion_to_one_and_each_stream_to_its_multiplier(lambdas: np.ndarray) -> None:
    base, *streams = mixture_probabilities(lambdas)
    assert base + sum(streams) == pytest.approx(1)
    assert base == pytest.approx(1 / (1 + lambdas.sum()))
    np.testing.assert_allclose(streams, lambdas * base)


@st.composite
def populations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of N samples belong to which of m constraints [N, m], a value of each sample [N], multipliers [m]."""
    m, N = draw(st.integers(1, 4)), draw(st.integers(4, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    inside = rng.random((N, m)) < rng.random(m)
    inside[np.arange(m), np.arange(m)] = True
    return inside, rng.normal(size=N), rng.exponential(size=m)


@given(population=populations())
def test_weighted_base_draws_have_the_expectation_of_the_mixture(
    population: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Exactly, on a finite population whose constraints overlap as they like."""
    inside, values, lambdas = population
    memberships, cells = np.unique(inside, axis=0, return_inverse=True)
    member_cells, members = np.nonzero(memberships)
    data = Data(inside.mean(axis=0), np.bincount(cells.ravel()) / len(values), member_cells, members)
    weights = sample_weights(lambdas, data) / (1 + lambdas.sum())

    means = [values.mean(), *(values[inside[:, i]].mean() for i in range(len(lambdas)))]
    by_mixture = mixture_probabilities(lambdas) @ means
    assert np.mean(weights[cells.ravel()] * values) == pytest.approx(by_mixture, abs=1e-13)
    assert np.mean(weights[cells.ravel()]) == pytest.approx(1)


def test_samples_of_no_constraint_weigh_least_and_those_of_two_add_up() -> None:
    # cell 0: no constraint; 1: the first; 2: both
    data = Data(np.array([0.25, 0.1]), np.full(3, 1 / 3), np.array([1, 2, 2]), np.array([0, 0, 1]))
    np.testing.assert_allclose(sample_weights(np.array([0.5, 1.0]), data), [1, 1 + 2, 1 + 2 + 10])


@given(population=populations())
def test_the_lagrangian_is_the_mixture_s_loss_less_what_the_thresholds_grant(
    population: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """``L = (1 + Lambda) loss(p_lambda) - lambda . c``."""
    inside, values, lambdas = population
    losses = np.array([values[inside[:, i]].mean() for i in range(len(lambdas))])
    thresholds = losses[::-1] + 0.1
    of_mixture = mixture_probabilities(lambdas) @ np.concatenate([[values.mean()], losses])
    expected = (1 + lambdas.sum()) * of_mixture - lambdas @ thresholds
    assert lagrangian(float(values.mean()), losses, thresholds, lambdas) == pytest.approx(expected)
