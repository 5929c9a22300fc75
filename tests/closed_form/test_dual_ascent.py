"""Dual ascent on exact dual gradients: through the dual step, both rules reach what the closed form says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import begin, shares_problem, told
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import root

from cdt.constraints import MinFrequency, Population, Requirements
from cdt.dual import DualProblem, DualState, dual_step, lagrangian, solve_floors
from cdt.dual.lagrangian import sample_weights

IRREDUCIBLE = 30.0
"""What the loss of each class is made of besides log(1 / f_i); it drops out of every difference."""


def floors_problem(
    shares: np.ndarray, floors: np.ndarray, rule: str | list[str], eta: float, equal: np.ndarray | bool = False
) -> DualProblem:
    return shares_problem(shares, IRREDUCIBLE + np.log(1 / floors), rule, eta, equal=equal)


def exact_losses(shares: np.ndarray, lambdas: np.ndarray) -> np.ndarray:
    """``loss_i = floor_i - log f_i(lambda)``: disjoint classes, a model that has followed lambda exactly."""
    return IRREDUCIBLE - np.log((shares + lambdas) / (1 + lambdas.sum()))


def ascend(problem: DualProblem, steps: int, start: np.ndarray) -> DualState:
    state = begin(start)
    for _ in range(steps):
        state = dual_step(problem, state, told(exact_losses(problem.shares, state.lambdas)))
    return state


CASES = {
    "two rare classes": ([0.02, 0.02], [0.1, 0.2]),
    "one has enough": ([0.02, 0.5], [0.3, 0.2]),
    "one is diluted into activity": ([0.02, 0.205, 0.5], [0.2, 0.2, 0.3]),
    "none is needed": ([0.3, 0.4], [0.2, 0.1]),
    "uniform over four of ten": ([0.01, 0.02, 0.12, 0.15], [0.1, 0.1, 0.1, 0.1]),
}


@pytest.mark.parametrize("rule", ["mass", "ascent"])
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
    mixed = floors_problem(pi, F, ["mass", "ascent", "mass"], 0.02)
    found = ascend(mixed, 4000, np.zeros(3))
    np.testing.assert_allclose(found.lambdas, solution.lambdas, atol=1e-6)


EQUALITIES = {
    "one from above": ([0.5], [0.2], [True]),
    "one from below": ([0.1], [0.3], [True]),
    "both ways": ([0.5, 0.1], [0.3, 0.3], [True, True]),
    "makes room for a floor": ([0.5, 0.1], [0.2, 0.15], [True, False]),
    "beside floors": ([0.4, 0.02, 0.3], [0.25, 0.1, 0.32], [True, False, False]),
}


@pytest.mark.parametrize("rule", ["mass", "ascent"])
@pytest.mark.parametrize(("shares", "wanted", "equal"), EQUALITIES.values(), ids=EQUALITIES.keys())
def test_equalities_are_met_exactly_by_multipliers_of_either_sign(
    rule: str, shares: list[float], wanted: list[float], equal: list[bool]
) -> None:
    pi, F, exactly = np.array(shares), np.array(wanted), np.array(equal)
    solution = solve_floors(pi, F, exactly)
    assert solution is not None
    eta, steps = (0.5, 400) if rule == "mass" else (min(shares) / 3, min(4000, round(180 / min(shares))))
    found = ascend(floors_problem(pi, F, rule, eta, exactly), steps, np.zeros(len(pi)))
    np.testing.assert_allclose(found.lambdas, solution.lambdas, atol=1e-6)
    frequencies = (pi + found.lambdas) / (1 + found.lambdas.sum())
    np.testing.assert_allclose(frequencies[exactly], F[exactly], atol=1e-6)


NAMES = ["a", "b", "c", "d"]
MASSES = np.array([0.02, 0.08, 0.3, 0.6])


def groups(**floors: float) -> tuple[Requirements, np.ndarray]:
    """Constraints on groups of the classes of a population with shares MASSES (names say which), and their floors."""
    classes = np.repeat(np.arange(4), (1000 * MASSES).round().astype(int))
    constraints = {
        name: MinFrequency.model_validate({"class": list(name), "min_frequency": F}) for name, F in floors.items()
    }
    return Requirements.bind(constraints, Population(classes, NAMES, {}, "x")), np.array(list(floors.values()))


def divergences(requirements: Requirements, lambdas: np.ndarray) -> np.ndarray:
    """``KL(q_i || p_lambda)`` of every group: its cells are disjoint, so it is a sum over them.

    ``f_k = pi_k (1 + sum_{i: k in i} lambda_i / pi_i) / (1 + Lambda)``, and q_i has ``pi_k / pi_i`` in cell k.
    """
    shares = requirements.cell_shares
    frequencies = shares * sample_weights(lambdas, requirements) / (1 + lambdas.sum())
    return requirements.by_constraint(np.log(shares / frequencies)) - np.log(requirements.shares)


def group_ascent(requirements: Requirements, budgets: np.ndarray, rule: str) -> DualState:
    eta = 0.5 if rule == "mass" else float(requirements.shares.min()) / 2
    problem = shares_problem(requirements.shares, budgets, rule, eta)
    state = begin(np.zeros(len(budgets)))
    for _ in range(600 if rule == "mass" else round(60 / eta)):
        state = dual_step(problem, state, told(divergences(requirements, state.lambdas)))
    return state


@pytest.mark.parametrize("rule", ["mass", "ascent"])
def test_several_classes_as_one_group_are_a_class_with_their_share(rule: str) -> None:
    """Inside the group the proportions stay those of the data."""
    requirements, floors = groups(ab=0.4, c=0.35)
    solution = solve_floors(np.array([0.1, 0.3]), floors)
    assert solution is not None
    found = group_ascent(requirements, np.log(1 / floors), rule)
    np.testing.assert_allclose(found.lambdas, solution.lambdas, atol=1e-6)
    weights = sample_weights(found.lambdas, requirements)[requirements.cells] / solution.total
    of_class = np.bincount(np.repeat(np.arange(4), [20, 80, 300, 600]), weights=weights) / 1000
    np.testing.assert_allclose(of_class[:2], 0.4 * MASSES[:2] / 0.1, atol=1e-6)


@pytest.mark.parametrize("rule", ["mass", "ascent"])
@pytest.mark.parametrize(
    "floors", [{"ab": 0.3, "a": 0.15}, {"ab": 0.3, "bc": 0.5}, {"a": 0.1, "ab": 0.25, "abc": 0.6}], ids=str
)
def test_groups_that_overlap_reach_the_root_of_their_divergences(rule: str, floors: dict[str, float]) -> None:
    """All of them binding: the multipliers at which every divergence is its budget, found by a root finder."""
    requirements, F = groups(**floors)
    budgets = np.log(1 / F)
    found = group_ascent(requirements, budgets, rule)
    exact = root(lambda at: divergences(requirements, at) - budgets, found.lambdas + 0.01, tol=1e-13)
    assert exact.success
    assert (exact.x > 1e-3).all()
    np.testing.assert_allclose(found.lambdas, exact.x, atol=1e-6)


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
    problem = shares_problem(pi, IRREDUCIBLE + np.log(1 / F), cap=10.0)
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
