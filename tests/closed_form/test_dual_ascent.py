"""Dual ascent on exact dual gradients: through the dual step, both rules reach what the closed form says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.dual import RULES, DualProblem, DualState, Sums, dual_step, lagrangian, solve_floors

IRREDUCIBLE = 30.0
"""What the loss of each class is made of besides log(1 / f_i); it drops out of every difference."""


def floors_problem(shares: np.ndarray, floors: np.ndarray, rule: str, eta: float) -> DualProblem:
    m = len(shares)
    return DualProblem(
        names=tuple(f"class {i}" for i in range(m)),
        shares=shares,
        baseline=np.zeros(m),
        thresholds=IRREDUCIBLE + np.log(1 / floors),
        rules=(rule,) * m,
        cap=1e6,
        eta=eta,
    )


def exact_losses(shares: np.ndarray, lambdas: np.ndarray) -> np.ndarray:
    """``loss_i = floor_i - log f_i(lambda)``: disjoint classes, a model that has followed lambda exactly."""
    return IRREDUCIBLE - np.log((shares + lambdas) / (1 + lambdas.sum()))


def ascend(problem: DualProblem, steps: int, start: np.ndarray) -> DualState:
    state = DualState(period=0, lambdas=start)
    for _ in range(steps):
        losses = exact_losses(problem.shares, state.lambdas)
        state = dual_step(problem, state, Sums(8 * losses, 8 * losses**2, np.full(len(losses), 8.0)))
    return state


CASES = {
    "two rare classes": ([0.02, 0.02], [0.1, 0.2]),
    "one has enough": ([0.02, 0.5], [0.3, 0.2]),
    "one is diluted into activity": ([0.02, 0.205, 0.5], [0.2, 0.2, 0.3]),
    "none is needed": ([0.3, 0.4], [0.2, 0.1]),
    "uniform over four of ten": ([0.01, 0.02, 0.12, 0.15], [0.1, 0.1, 0.1, 0.1]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shares", "floors"), CASES.values(), ids=CASES.keys())
def test_both_rules_reach_the_closed_form(rule: str, shares: list[float], floors: list[float]) -> None:
    """From zero, to 1e-6; projected ascent with a step below the inverse of the curvature, 1 / min pi."""
    pi, F = np.array(shares), np.array(floors)
    solution = solve_floors(pi, F)
    assert solution is not None
    eta, steps = (1.0, 200) if rule == "mass" else (min(shares), 3000)
    found = ascend(floors_problem(pi, F, rule, eta), steps, np.zeros(len(pi)))
    np.testing.assert_allclose(found.lambdas, solution.lambdas, atol=1e-6)
    slack = np.log(1 / F) + IRREDUCIBLE - found.losses
    assert (slack > -1e-6).all()
    np.testing.assert_allclose(slack[solution.active], 0, atol=1e-5)


def test_the_rules_agree_within_one_problem() -> None:
    pi, F = np.array([0.02, 0.05, 0.3]), np.array([0.2, 0.1, 0.3])
    solution = solve_floors(pi, F)
    assert solution is not None
    mixed = floors_problem(pi, F, "mass", 0.02)
    mixed = DualProblem(**{**vars(mixed), "rules": ("mass", "ascent", "mass")})
    found = ascend(mixed, 4000, np.zeros(3))
    np.testing.assert_allclose(found.lambdas, solution.lambdas, atol=1e-6)


@settings(max_examples=30)
@given(
    masses=st.lists(st.floats(0.02, 1.0), min_size=2, max_size=5).map(np.array),
    wishes=st.lists(st.floats(0.02, 1.0), min_size=5, max_size=5).map(np.array),
    total=st.floats(0.1, 0.8),
)
def test_the_closed_form_is_a_fixed_point_that_the_mass_rule_finds(
    masses: np.ndarray, wishes: np.ndarray, total: float
) -> None:
    shares = (masses / masses.sum())[:-1]
    floors = wishes[: len(shares)] / wishes[: len(shares)].sum() * total
    solution = solve_floors(shares, floors)
    assert solution is not None
    problem = floors_problem(shares, floors, "mass", 1.0)
    np.testing.assert_allclose(ascend(problem, 1, solution.lambdas).lambdas, solution.lambdas, atol=1e-9)
    np.testing.assert_allclose(ascend(problem, 120, np.zeros(len(shares))).lambdas, solution.lambdas, atol=1e-6)


def test_floors_that_no_model_meets_drive_the_multipliers_to_their_cap() -> None:
    pi, F = np.array([0.1, 0.1]), np.array([0.7, 0.6])
    assert solve_floors(pi, F) is None
    problem = DualProblem(**{**vars(floors_problem(pi, F, "mass", 1.0)), "cap": 10.0})
    assert ascend(problem, 200, np.zeros(2)).lambdas.tolist() == [10.0, 10.0]


@given(lambdas=st.lists(st.floats(0, 3), min_size=3, max_size=3).map(np.array))
def test_lambda_maximises_the_dual_function_and_the_duality_gap_is_zero(lambdas: np.ndarray) -> None:
    """``g(lambda) = L(p_lambda, lambda)``; at its maximum it is the primal optimum, KL(q || p) of the best model."""
    shares, floors = np.array([0.05, 0.15, 0.8]), np.array([0.3, 0.1, 0.2])
    budgets = np.log(1 / floors)

    def dual_function(at: np.ndarray) -> float:
        frequencies = (shares + at) / (1 + at.sum())
        divergence = float(shares @ np.log(shares / frequencies))
        return lagrangian(divergence, -np.log(frequencies), budgets, at)

    solution = solve_floors(shares, floors)
    assert solution is not None
    optimum = shares @ np.log(shares * solution.total / (shares + solution.lambdas))
    assert dual_function(solution.lambdas) == pytest.approx(optimum)
    assert dual_function(lambdas) <= optimum + 1e-12
    assert math.isclose(dual_function(np.zeros(3)), 0, abs_tol=1e-12)
