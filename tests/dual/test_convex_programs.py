"""Small convex programs whose multipliers are known: gradients by hand, violations through the dual step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import MOVING, begin, pose, sums

from cdt.dual import DualProblem, DualState, dual_step


def ascend(posed: DualProblem, losses: Callable[[np.ndarray], np.ndarray], periods: int) -> DualState:
    """Dual ascent from zero; ``losses`` of the minimiser of the Lagrangian at given multipliers."""
    now = begin(*np.zeros(len(posed.names)))
    for _ in range(periods):
        now = dual_step(posed, now, sums(*losses(now.lambdas), deviation=0.0))
    return now


@pytest.mark.parametrize("rule", MOVING)
@pytest.mark.parametrize("variant", [{}, {"kp": 0.5}, {"kp": 1.0, "nu": 0.8}], ids=["plain", "nuPI", "smoothed nuPI"])
def test_projection_onto_a_polygon(rule: str, variant: dict[str, Any]) -> None:
    """``min |x - (2, 1)|^2 / 2`` with x1 <= 1, x1 + x2 <= 3/2, x2 >= -1: x = (1, 1/2), lambda = (1/2, 1/2, 0)."""
    x0 = np.array([2.0, 1.0])
    A, b = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]), np.array([1.0, 1.5, 1.0])
    posed = pose(3, rules=rule, thresholds=b, etas=0.3 if rule == "ascent" else 0.5, **variant)
    now = ascend(posed, lambda at: A @ (x0 - A.T @ at), 500)
    np.testing.assert_allclose(now.lambdas, [0.5, 0.5, 0.0], atol=1e-4)
    np.testing.assert_allclose(now.losses, [1.0, 1.5, -0.5], atol=1e-4)


@pytest.mark.parametrize("rule", MOVING)
@pytest.mark.parametrize("seed", range(6))
def test_quadratic_programs_from_their_kkt_conditions(rule: str, seed: int) -> None:
    """Solution and multipliers are chosen first, a program that has them second; one constraint is an equality."""
    rng = np.random.default_rng(seed)
    A = np.linalg.qr(rng.normal(size=(4, 4)))[0][:3] + 0.2 * rng.normal(size=(3, 4))
    Q = np.diag(rng.uniform(0.5, 2.0, 4))
    x, lambdas = rng.normal(size=4), np.array([rng.uniform(0.2, 1.0), 0.0, rng.uniform(-0.4, 0.4)])
    x0 = x + np.linalg.solve(Q, A.T @ lambdas)
    b = A @ x + np.array([0.0, 0.5, 0.0])  # the second is inactive
    posed = pose(3, shares=0.5, rules=rule, thresholds=b, etas=0.3, equal=[False, False, True])
    now = ascend(posed, lambda at: A @ (x0 - np.linalg.solve(Q, A.T @ at)), 1500)
    np.testing.assert_allclose(now.lambdas, lambdas, atol=1e-4)
    np.testing.assert_allclose(now.average, lambdas, atol=0.01)


COSTS = np.array([3.0, 1.0, 2.0, 0.5])
LEAST = np.array([0.2, 0.1, 0.25, 0.1])


def allocation(costs: np.ndarray) -> np.ndarray:
    """``argmin_x costs . x + sum x log x`` over the simplex."""
    weights = np.exp(-costs)
    return weights / weights.sum()


@pytest.mark.parametrize(("rule", "eta"), [("mass", 2.0), ("ascent", 2.0)])
def test_allocation_with_least_shares(rule: str, eta: float) -> None:
    """``min c . x + sum x log x`` with ``x_i >= l_i``: active where ``x_i = l_i``, ``lambda_i = c_i + log(l_i Z)``.

    Z is the sum of ``exp(-c_j)`` over the others, divided by the share that is left for them.
    """
    free = [1, 3]
    normaliser = np.exp(-COSTS[free]).sum() / (1 - LEAST[[0, 2]].sum())
    expected = np.where(np.isin(np.arange(4), free), 0.0, COSTS + np.log(LEAST * normaliser))
    assert (expected[[0, 2]] > 0.1).all()
    assert (np.exp(-COSTS[free]) / normaliser > LEAST[free]).all()
    posed = pose(4, rules=rule, etas=eta, thresholds=-LEAST, shares=0.25)
    now = ascend(posed, lambda at: -allocation(COSTS - at), 1000)
    np.testing.assert_allclose(now.lambdas, expected, atol=1e-4)
    np.testing.assert_allclose(allocation(COSTS - now.lambdas)[[0, 2]], LEAST[[0, 2]], atol=1e-5)
