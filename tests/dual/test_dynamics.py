"""How multipliers move: nuPI, resilience, and caps that are left as soon as there is slack."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MOVING, begin, pose, steps, sums
from scipy.optimize import minimize

from cdt.dual import DualState, dual_step
from cdt.dual.rules import RULES

losses = st.floats(-50, 50)


@pytest.mark.parametrize("rule", RULES)
@given(means=st.lists(st.tuples(losses, losses, losses), min_size=1, max_size=5), nu=st.floats(0, 0.9))
def test_without_a_proportional_term_and_resilience_the_step_is_the_rule_bit_for_bit(
    rule: str, means: list[tuple[float, float, float]], nu: float
) -> None:
    posed = pose(3, shares=[0.01, 0.1, 0.5], thresholds=[1.0, 2.0, 3.0], rules=rule, etas=0.07, nu=nu)
    now = begin(0.1, 0.0, 2.0)
    for each in means:
        before, now = now, dual_step(posed, now, told := sums(*each))
        expected = RULES[rule](
            before.lambdas, posed.etas * (told.mean() - posed.thresholds), posed.shares, posed.lowest
        )
        assert now.lambdas.tobytes() == expected.tobytes()


def lagging(kp: float, nu: float, periods: int) -> tuple[np.ndarray, DualState]:
    """lambda over time for a loss ``1 - lambda`` that follows only by a tenth per period; lambda* = 1."""
    posed, now, loss, history = pose(1, etas=0.2, kp=kp, nu=nu), begin(0.0), 1.0, []
    for _ in range(periods):
        now = steps(posed, now, loss)
        loss += 0.1 * (1 - now.lambdas[0] - loss)
        history.append(now.lambdas[0])
    return np.array(history), now


@pytest.mark.parametrize("nu", [0.0, 0.5])
def test_the_proportional_term_damps_what_would_oscillate(nu: float) -> None:
    """A second-order system with damping ``sqrt(0.1 / 0.2) (1 + 0.2 kp) / 2``: 0.35, and above 1 from kp = 9 on."""
    plain, _ = lagging(kp=0.0, nu=nu, periods=400)
    damped, now = lagging(kp=10.0, nu=nu, periods=400)
    assert plain.max() > 1.25
    assert damped.max() < 1.02
    assert np.abs(plain[50:] - 1).max() > 10 * np.abs(damped[50:] - 1).max()
    assert now.lambdas[0] == pytest.approx(1, abs=1e-4)


@given(means=st.lists(losses, min_size=2, max_size=20), rho=st.floats(0, 5))
def test_with_nu_0_the_multiplier_is_what_an_augmented_lagrangian_weighs_with(means: list[float], rho: float) -> None:
    """``lambda + rho v``, the factor of grad loss_i in ``lambda v + rho v^2 / 2``, where lambda is plain ascent's."""
    eta, begun = 0.1, 1e4  # far from 0, where the two project differently
    augmented = steps(pose(1, etas=eta, kp=rho / eta), begin(begun), *means)
    plain = steps(pose(1, etas=eta), begin(begun), *means)
    # The proportional term begins with the first change.
    expected = plain.lambdas[0] + rho * (means[-1] - means[0])
    assert augmented.lambdas[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("factor", "stable"), [(0.95, True), (1.05, False)])
@pytest.mark.parametrize("step", [0.05, 0.5, 1.5])
def test_the_proportional_term_swings_beyond_its_own_limit(step: float, factor: float, stable: bool) -> None:
    """For a loss that answers at once with slope -c: ``kp < 1 / (eta c) - 1 / 2`` (Jury's criterion)."""
    kp = factor * (1 / step - 0.5)
    posed, now = pose(1, etas=step, kp=kp), begin(1.0 + 1e-3)
    for _ in range(600):
        now = steps(posed, now, 1.0 - now.lambdas[0])
    assert (abs(now.lambdas[0] - 1) < 1e-4) == stable


@pytest.mark.parametrize("rule", MOVING)
@pytest.mark.parametrize("start", [0.0, 5.0])
def test_of_a_loss_that_does_not_respond_the_resilient_fixed_point_is_v_over_two_gamma(rule: str, start: float) -> None:
    posed = pose(3, rules=rule, etas=0.5, gamma=0.25, thresholds=[0.0, 1.0, 2.0])
    now = steps(posed, begin(*[start] * 3), *[1.5] * 400)
    np.testing.assert_allclose(now.lambdas, [1.5 / 0.5, 0.5 / 0.5, 0.0], atol=1e-9)


def test_a_violated_equality_gives_way_on_either_side() -> None:
    posed = pose(2, shares=0.5, etas=0.5, gamma=0.5, equal=True, thresholds=[0.0, 0.5])
    now = steps(posed, begin(0.0, 0.0), *[0.2] * 100)
    np.testing.assert_allclose(now.lambdas, [0.2, -0.3], atol=1e-9)


@pytest.mark.parametrize(("product", "stable"), [(1.0, True), (1.96, True), (2.04, False), (3.0, False)])
def test_resilient_ascent_is_stable_below_a_product_of_two(product: float, stable: bool) -> None:
    """``eta * 2 * gamma``: the error is multiplied by one minus that at every step."""
    gamma = 0.5
    posed = pose(1, etas=product / (2 * gamma), gamma=gamma)
    fixed_point = 10.0 / (2 * gamma)
    now = begin(fixed_point + 1e-3)
    once = steps(posed, now, 10.0)
    assert once.lambdas[0] - fixed_point == pytest.approx((1 - product) * 1e-3)
    error = abs(steps(posed, now, *[10.0] * 300).lambdas[0] - fixed_point)
    assert error < 1e-6 if stable else error > 1


@pytest.mark.parametrize("rule", MOVING)
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_a_loss_that_responds_ends_at_the_solution_of_the_relaxed_problem(rule: str, gamma: float) -> None:
    """``min |x - x0|^2 / 2 + sum u_i^2 / (4 gamma)`` with ``a_i . x <= b_i + u_i``; minimised by x0 - A' lambda.

    The third constraint has slack and does not relax.
    """
    x0 = np.array([2.0, 1.0])
    A, b = np.array([[1.0, 0.2], [0.5, 1.0], [-1.0, 0.0]]), np.array([1.0, 0.8, 0.0])
    relaxed = minimize(
        lambda x: (x - x0) @ (x - x0) / 2 + np.square(np.maximum(A @ x - b, 0)).sum() / (4 * gamma), x0, tol=1e-12
    )
    posed = pose(3, shares=0.2, rules=rule, etas=0.3, gamma=gamma, thresholds=b)
    now = begin(0.0, 0.0, 0.0)
    for _ in range(400):
        now = dual_step(posed, now, sums(*A @ (x0 - A.T @ now.lambdas)))
    np.testing.assert_allclose(x0 - A.T @ now.lambdas, relaxed.x, atol=1e-4)
    np.testing.assert_allclose(now.losses[:2] - b[:2], 2 * gamma * now.lambdas[:2], atol=1e-6)
    assert now.lambdas[:2].min() > 0.05
    assert now.lambdas[2] == 0


@pytest.mark.parametrize("rule", MOVING)
@given(
    violations=st.lists(st.floats(1e-3, 100), min_size=1, max_size=20),
    slack=st.floats(1e-6, 1),
    kp=st.sampled_from([0.0, 1.0, 20.0]),
    nu=st.sampled_from([0.0, 0.9]),
    gamma=st.sampled_from([0.0, 0.01]),
)
def test_a_cap_is_left_in_the_first_period_with_slack(
    rule: str, violations: list[float], slack: float, kp: float, nu: float, gamma: float
) -> None:
    """However long and however much the constraint was violated: nothing has wound up."""
    posed = pose(1, rules=rule, etas=0.1, cap=2.0, kp=kp, nu=nu, gamma=gamma)
    held = steps(posed, begin(2.0), *sorted(violations))  # rising, so that the proportional term holds as well
    if gamma == 0:
        assert held.lambdas[0] == 2.0
    assert steps(posed, held, -slack).lambdas[0] < held.lambdas[0]


@pytest.mark.parametrize("rule", MOVING)
@settings(max_examples=30)
@given(means=st.lists(losses, min_size=1, max_size=20), kp=st.sampled_from([0.0, 1.0, 20.0]))
def test_at_the_lowest_multiplier_nothing_winds_up_either(rule: str, means: list[float], kp: float) -> None:
    posed = pose(1, rules=rule, etas=0.1, equal=True, kp=kp)
    now = steps(posed, begin(0.0), *means, -60.0, -60.0)
    held = steps(posed, now, *[-60.0] * 40)
    assert held.lambdas.tolist() == posed.lowest.tolist()
    assert steps(posed, held, 1e-3).lambdas[0] > posed.lowest[0]
