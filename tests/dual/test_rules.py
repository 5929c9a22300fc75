"""Each update rule by itself, and on the exact dual of floors on shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.dual import solve_floors
from cdt.dual.config import DualConfig
from cdt.dual.rules import DEFAULT_ETA, RULES, mass_rule, projected_ascent, proportional_term

SHARES = np.array([0.007, 0.02, 0.3])
ZERO = np.zeros(3)


def violation(lambdas: np.ndarray, shares: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """``KL(q_i || p_lambda) - log(1 / F_i)`` for disjoint classes and an exact model: the dual's gradient."""
    return np.log(floors) - np.log((shares + lambdas) / (1 + lambdas.sum()))


def test_every_rule_has_a_default_step_size_and_can_be_configured() -> None:
    assert DEFAULT_ETA.keys() == RULES.keys()
    assert {DualConfig.model_validate({"rule": name}).rule for name in RULES} == RULES.keys()


def test_projected_ascent_adds_the_violation_and_stops_at_zero() -> None:
    lambdas = projected_ascent(np.array([0.1, 0.1, 0.0]), 0.1 * np.array([2.0, -3.0, 0.5]), SHARES, ZERO)
    np.testing.assert_allclose(lambdas, [0.3, 0.0, 0.05])


def test_the_mass_rule_multiplies_the_mass_of_the_class() -> None:
    before, nats = np.array([0.1, 0.0, 0.4]), np.array([0.5, 1.0, -0.2])
    after = mass_rule(before, 0.3 * nats, SHARES, ZERO)
    np.testing.assert_allclose(np.log((SHARES + after) / (SHARES + before)), 0.3 * nats)


def test_fixed_multipliers_stay() -> None:
    lambdas = np.array([0.1, 0.0, -0.2])
    assert RULES["fixed"](lambdas, np.array([5.0, -5.0, 1.0]), SHARES, ZERO).tobytes() == lambdas.tobytes()


def test_under_the_mass_rule_no_class_falls_below_its_share_of_the_data() -> None:
    assert mass_rule(np.array([0.01, 0.0, 0.2]), np.full(3, -1.5), SHARES, ZERO).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("nats", [50.0, -50.0, np.inf, -np.inf])
def test_an_outlier_moves_the_mass_by_one_e_fold_at_most(nats: float) -> None:
    lambdas = np.full(3, 5.0)
    after = mass_rule(lambdas, np.full(3, 0.3 * nats), SHARES, ZERO)
    np.testing.assert_allclose((SHARES + after) / (SHARES + lambdas), np.exp(np.sign(nats)))


@pytest.mark.parametrize("rule", RULES)
@given(
    state=st.lists(st.tuples(st.floats(0, 10), st.floats(-100, 100), st.floats(1e-4, 1)), min_size=1, max_size=5),
    depth=st.sampled_from([0.0, 0.9]),
)
def test_multipliers_rise_where_the_constraint_is_violated_and_never_below_the_lowest(
    rule: str, state: list[tuple[float, float, float]], depth: float
) -> None:
    """Which is zero, or for an equality what leaves the class a tenth of its mass."""
    lambdas, step, shares = np.array(state).T
    lowest = -depth * shares
    after = RULES[rule](lambdas, step, shares, lowest)
    assert (after >= lowest).all()
    rounding = 1e-14
    assert (after[step > 0] >= lambdas[step > 0] - rounding).all()
    assert (after[step < 0] <= lambdas[step < 0] + rounding).all()


def test_the_mass_rule_contracts_by_the_sum_of_the_floors() -> None:
    """At eta = 1: ``w_i <- F_i (1 + Lambda)``, so the error of Lambda is multiplied by ``sum F`` at each step."""
    shares, floors = np.array([0.02, 0.03, 0.05]), np.array([0.2, 0.1, 0.3])
    solution = solve_floors(shares, floors)
    assert solution is not None
    assert solution.active.all()
    lambdas = 1.3 * solution.lambdas
    errors = []
    for _ in range(20):
        lambdas = mass_rule(lambdas, violation(lambdas, shares, floors), shares, ZERO)
        errors.append(lambdas.sum() - solution.lambdas.sum())
    np.testing.assert_allclose(np.array(errors[1:]) / errors[:-1], floors.sum(), rtol=1e-6)


def test_projected_ascent_reaches_lambda_on_the_exact_dual() -> None:
    """With a step below the smallest share, since the dual's curvature is up to 1 / pi_i."""
    shares, floors = np.array([0.02, 0.1, 0.4]), np.array([0.2, 0.15, 0.2])
    solution = solve_floors(shares, floors)
    assert solution is not None
    assert solution.active.tolist() == [True, True, False]
    lambdas = np.zeros(3)
    for _ in range(1000):
        lambdas = projected_ascent(lambdas, 0.02 * violation(lambdas, shares, floors), shares, ZERO)
    np.testing.assert_allclose(lambdas, solution.lambdas, atol=1e-9)


@given(
    violations=st.lists(st.floats(-100, 100), min_size=1, max_size=20),
    nu=st.floats(0, 0.99),
)
def test_the_proportional_term_is_the_change_of_the_smoothed_violation(violations: list[float], nu: float) -> None:
    """Against the sums written out: ``xi_t = nu^t v_0 + (1 - nu) sum_s nu^(t - s) v_s``; the first changes nothing."""
    smoothed, changes, values = np.array([np.nan]), [], []
    for violation in violations:
        change, smoothed = proportional_term(np.array([violation]), smoothed, nu)
        changes.append(change[0])
        values.append(smoothed[0])
    for t, value in enumerate(values):
        recent = sum(nu ** (t - s) * violations[s] for s in range(1, t + 1))
        assert value == pytest.approx(nu**t * violations[0] + (1 - nu) * recent, abs=1e-9)
    np.testing.assert_array_equal(changes, [0.0, *np.diff(values)])
