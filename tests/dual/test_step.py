"""The dual step as a pure function: rules, estimates, equalities, shares of samples, averages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from problems import MOVING, begin, pose, steps, sums

from cdt.dual import ACTUATORS, DualProblem, DualState, Sums, dual_step, journal_rows, worst_constraint
from cdt.dual.links import LINKS
from cdt.dual.rules import DEFAULT_ETA, RULES
from cdt.dual.step import estimated_losses

TOLERANCE = LINKS["identity"].tolerance


def problem(**changes: Any) -> DualProblem:
    defaults: dict[str, Any] = {
        "names": ("four", "five", "male"),
        "shares": [0.01, 0.02, 0.4],
        "baseline": [30.0, 40.0, 0.0],
        "thresholds": [28.0, 41.0, 12.5],
        "rules": ["mass", "mass", "ascent"],
        "cap": 10.0,
    }
    return pose(3, **{**defaults, **changes})


def state(*lambdas: float) -> DualState:
    return dataclasses.replace(begin(*lambdas), period=4)


def test_each_multiplier_follows_its_own_rule() -> None:
    before = state(0.1, 0.1, 0.1)
    after = dual_step(problem(), before, sums(-1.0, -1.0, 13.0))
    losses = [29.0, 39.0, 13.0]
    nats = np.array([1.0, -2.0, 0.5])
    expected = [
        (0.01 + 0.1) * math.exp(DEFAULT_ETA["mass"] * nats[0]) - 0.01,
        (0.02 + 0.1) * math.exp(DEFAULT_ETA["mass"] * nats[1]) - 0.02,
        0.1 + DEFAULT_ETA["ascent"] * nats[2],
    ]
    np.testing.assert_allclose(after.lambdas, expected)
    np.testing.assert_allclose(after.losses, losses)
    np.testing.assert_allclose(after.errors, math.sqrt(1 / 7))
    assert after.counts.tolist() == [8.0] * 3
    assert after.period == 5


def test_each_constraint_has_a_step_size_of_its_own() -> None:
    after = dual_step(problem(etas=[0.05, 0.1, 0.2]), state(0.1, 0.1, 0.1), sums(-1.0, 1.0, 13.0))
    np.testing.assert_allclose(after.lambdas, [0.11 * math.exp(0.05) - 0.01, 0.1, 0.1 + 0.2 * 0.5])


def frozen(*values: Any) -> None:
    """Makes every array of the dataclasses read-only."""
    for value in values:
        for array in vars(value).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False


def test_the_step_is_pure_and_in_float64() -> None:
    hard = problem(
        kp=2.0, nu=0.5, gamma=0.1, links=["identity", "identity", "negative_log"], equal=[True, False, False]
    )
    before = dual_step(hard, state(0.1, 0.2, 0.3), sums(-1.0, 1.0, 0.1))
    arguments = hard, before, sums(-2.0, 2.0, 0.2)
    frozen(*arguments)
    first, second = dual_step(*arguments), dual_step(*arguments)
    for name, array in vars(first).items():
        if isinstance(array, np.ndarray):
            assert array.dtype == (bool if name == "told" else np.float64)
            assert array.tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("total", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "before", [state(1e-18, 1 / 3, 0.2), dual_step(problem(), state(0.1, 0.1, 0.1), sums(1, 2, 3))]
)
def test_without_a_finite_estimate_a_multiplier_stays_as_it_is(total: float, before: DualState) -> None:
    """To the last bit, under either rule, measured before or not; the others move."""
    for i in range(3):
        statistics = sums(-1.0, 2.0, 13.0)
        statistics.total[i] = total
        after = dual_step(problem(), before, statistics)
        assert after.lambdas[i] == before.lambdas[i]
        assert (np.delete(after.lambdas, i) != np.delete(before.lambdas, i)).all()


def test_without_samples_a_multiplier_stays_as_it_is_and_no_loss_is_told() -> None:
    statistics = sums(-1.0, 2.0, 13.0)
    for array in (statistics.total, statistics.squares, statistics.count):
        array[1] = 0.0
    after = dual_step(problem(), state(0.1, 0.3, 0.2), statistics)
    assert after.lambdas[1] == 0.3
    assert np.isnan(after.losses).tolist() == [False, True, False]
    assert np.isnan(after.errors).tolist() == [False, True, False]
    assert after.counts.tolist() == [8, 0, 8]
    row = journal_rows(problem(), after, step=7)[1]
    assert (row["loss"], row["stderr"], row["slack"], row["satisfied"], row["count"]) == (None, None, None, None, 0)
    assert worst_constraint(problem(), after) == ("four", -1.0)


@pytest.mark.parametrize("lost", [0.0, np.nan])
def test_what_was_measured_last_stands_until_it_is_measured_again(lost: float) -> None:
    """Whether it had no samples or its loss ran away; kp then weighs the change since."""
    posed = problem(kp=1.0)
    first = dual_step(posed, state(0.1, 0.3, 0.2), sums(-1.0, 2.0, 13.0))
    statistics = sums(-1.0, 2.0, 13.0)
    statistics.total[1], statistics.count[1] = lost, 0.0 if lost == 0 else 8.0
    second = dual_step(posed, first, statistics)
    for name in ("lambdas", "losses", "errors", "smoothed"):
        assert getattr(second, name)[1] == getattr(first, name)[1]
    third = dual_step(posed, second, sums(-1.0, 5.0, 13.0))
    eta = DEFAULT_ETA["mass"]
    mass = (0.02 + second.lambdas[1]) * math.exp(eta * (45 - 41) + eta * (45 - 42))
    assert third.lambdas[1] == pytest.approx(mass - 0.02, rel=1e-12)


@pytest.mark.parametrize("rule", MOVING)
def test_no_multiplier_grows_beyond_its_cap(rule: str) -> None:
    capped = problem(rules=rule, cap=0.5, etas=1.0)
    after = dual_step(capped, state(0.45, 0.5, 0.0), sums(100.0, 100.0, 100.0))
    assert after.lambdas[:2].tolist() == [0.5, 0.5]
    assert (after.lambdas <= 0.5).all()


def test_without_constraints_the_step_only_counts() -> None:
    nothing = np.zeros(0)
    after = dual_step(pose(0), state(), Sums(nothing, nothing, nothing))
    assert (after.period, after.lambdas.tolist()) == (5, [])
    assert journal_rows(pose(0), after, step=1) == []
    assert worst_constraint(pose(0), after) is None


# Losses are computed in float32: beyond its range there are only infinities.
anything = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0])


@st.composite
def told(draw: st.DrawFn, m: int) -> Sums:
    counts = st.sampled_from([0.0, 1.0, 2.0, 256.0, 1e6])
    total, squares, count = (draw(arrays(np.float64, m, elements=each)) for each in (anything, anything, counts))
    return Sums(total, squares, count)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_is_told_no_multiplier_is_ever_anything_but_a_number_in_its_range(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 4))
    flags = arrays(np.bool_, m)
    fractions = arrays(np.float64, m, elements=st.floats(1e-6, 1))
    posed = pose(
        m,
        shares=data.draw(fractions),
        baseline=data.draw(arrays(np.float64, m, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))),
        thresholds=data.draw(arrays(np.float64, m, elements=st.floats(-1e6, 1e6))),
        rules=data.draw(arrays("U8", m, elements=st.sampled_from(list(RULES)))),
        etas=data.draw(fractions),
        equal=data.draw(flags),
        links=data.draw(arrays("U16", m, elements=st.sampled_from(list(LINKS)))),
        actuators=data.draw(arrays("U8", m, elements=st.sampled_from(list(ACTUATORS)))),
        kp=data.draw(arrays(np.float64, m, elements=st.floats(0, 100))),
        cap=data.draw(st.floats(1, 100)),
        nu=data.draw(st.floats(0, 0.99)),
        gamma=data.draw(st.floats(0, 0.9)),
    )
    now = begin(*data.draw(arrays(np.float64, m, elements=st.floats(0, 1))))
    for _ in range(3):
        before, now = now, dual_step(posed, now, statistics := data.draw(told(m)))
        for lambdas, rounding in ((now.lambdas, 0.0), (now.average, 1e-12)):
            assert np.isfinite(lambdas).all()
            assert (lambdas >= posed.lowest - rounding).all()
            assert (lambdas <= posed.cap + rounding).all()
        unknown = (statistics.count == 0) | np.isnan(statistics.total) | (statistics.total == np.inf)
        assert (now.lambdas[unknown] == before.lambdas[unknown]).all()
        assert not np.isinf(now.losses).any()


def share_of(shares: float, lambdas: np.ndarray) -> float:
    """Of one class among others, for an exact model: ``f = (pi + lambda) / (1 + lambda)``."""
    return float((shares + lambdas[0]) / (1 + lambdas[0]))


@pytest.mark.parametrize(("rule", "eta"), [("mass", 0.5), ("ascent", 0.1)])
@pytest.mark.parametrize("start", [-0.2, 0.0, 3.0])
@pytest.mark.parametrize("wanted", [0.1, 0.5])
def test_an_equality_is_met_from_above_and_from_below(rule: str, eta: float, start: float, wanted: float) -> None:
    """By ``lambda = (F - pi) / (1 - F)``, of either sign."""
    share = 0.3
    posed = pose(1, shares=share, rules=rule, etas=eta, equal=True, thresholds=math.log(1 / wanted))
    now = begin(start)
    for _ in range(600):
        now = dual_step(posed, now, sums(-math.log(share_of(share, now.lambdas)), deviation=0.0))
        assert now.lambdas[0] >= posed.lowest[0]
    assert now.lambdas[0] == pytest.approx((wanted - share) / (1 - wanted), abs=1e-6)
    assert share_of(share, now.lambdas) == pytest.approx(wanted, abs=1e-6)
    assert now.satisfied_for > 100


@pytest.mark.parametrize("rule", MOVING)
def test_an_equality_beyond_reach_stays_at_the_lowest_multiplier_and_counts_as_violated(rule: str) -> None:
    posed = pose(1, shares=0.3, rules=rule, etas=0.1, equal=True, cap=10.0)
    now = steps(posed, begin(0.0), *[-5.0] * 100)
    assert now.lambdas.tolist() == posed.lowest.tolist()
    assert (now.satisfied_for, now.violated_since.tolist()) == (0, [1])
    [row] = journal_rows(posed, now, step=1)
    assert (row["satisfied"], row["slack"]) == (False, pytest.approx(TOLERANCE - 5))


@pytest.mark.parametrize(
    ("gap", "satisfied"), [(0.0, True), (0.09, True), (-0.09, True), (0.11, False), (-0.11, False)]
)
def test_an_equality_is_satisfied_within_its_tolerance(gap: float, satisfied: bool) -> None:
    after = steps(pose(1, equal=True), begin(0.0), gap)
    [row] = journal_rows(pose(1, equal=True), after, step=1)
    assert row["satisfied"] is satisfied
    assert (after.satisfied_for == 1) is satisfied
    assert row["slack"] == pytest.approx(TOLERANCE - abs(gap))


def shares_told(*posteriors: np.ndarray) -> Sums:
    columns = [(mass.sum(), np.square(mass).sum(), float(len(mass))) for mass in posteriors]
    return Sums(*np.array(columns).T)


GENERATED = pose(
    2, links=["negative_log", "identity"], baseline=[99.0, 30.0], rules="mass", thresholds=[math.log(10), 30.0]
)


def test_the_loss_of_a_generated_share_is_minus_its_log_whatever_the_baseline() -> None:
    losses, errors = estimated_losses(GENERATED, shares_told(np.array([0.0, 0.5, 0.0, 0.3]), np.array([1.0, -1.0])))
    np.testing.assert_allclose(losses, [-math.log(0.2), 30.0])
    np.testing.assert_allclose(errors, [float(np.std([0, 0.5, 0, 0.3], ddof=1)) / 2 / 0.2, 1.0])


def test_the_journal_has_the_share_that_was_counted() -> None:
    after = dual_step(GENERATED, begin(0.1, 0.1), shares_told(np.array([0.0, 0.5, 0.0, 0.3]), np.array([1.0, -1.0])))
    assert [row["share"] for row in journal_rows(GENERATED, after, step=1)] == [pytest.approx(0.2), None]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_standard_error_of_a_generated_share_is_that_of_repeated_measurements(share: float) -> None:
    """To first order in it (the delta method), for judges that are sure and for those that are not."""
    rng = np.random.default_rng(0)
    inside = rng.random((4000, 500)) < share
    for posteriors in (inside.astype(float), np.where(inside, 0.9, 0.02)):
        measured = [estimated_losses(GENERATED, shares_told(each, each)) for each in posteriors]
        losses, errors = np.array(measured)[:, :, 0].T
        assert losses.mean() == pytest.approx(-math.log(posteriors.mean()), abs=0.03)
        assert errors.mean() == pytest.approx(losses.std(), rel=0.06)


@pytest.mark.parametrize("count", [16, 500])
def test_of_none_seen_the_share_is_half_a_sample(count: int) -> None:
    """A finite loss, so that the multiplier rises; nobody is sure of it."""
    losses, errors = estimated_losses(GENERATED, shares_told(np.zeros(count), np.zeros(count)))
    assert losses[0] == pytest.approx(math.log(2 * count))
    assert errors[0] == pytest.approx(math.sqrt(2), rel=0.02)  # of a count c: 1 / sqrt(c)
    after = dual_step(GENERATED, begin(0.1, 0.1), shares_told(np.zeros(count), np.zeros(count)))
    nats = DEFAULT_ETA["mass"] * (math.log(2 * count) - math.log(10))
    np.testing.assert_allclose(after.lambdas, [0.2 * math.exp(nats) - 0.1, 0.1])


@given(means=st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_averages_weigh_the_period_t_by_t(means: list[float]) -> None:
    posed, now, history = pose(1, etas=0.3), begin(0.7), []
    for mean in means:
        now = steps(posed, now, mean)
        history.append(now.lambdas[0])
        weights = np.arange(1, len(history) + 1)
        assert now.average[0] == pytest.approx(weights @ history / weights.sum(), abs=1e-9)


def test_what_oscillates_averages_out() -> None:
    """Between 0 and 2 without end, and with a first period far away."""
    now = begin(1000.0)
    now = steps(pose(1, etas=1.0), now, -1000.0, *[2.0, -2.0] * 200)
    assert now.lambdas[0] == 0
    assert now.average[0] == pytest.approx(1, abs=0.01)


def test_satisfied_for_counts_the_periods_in_a_row_in_which_all_were() -> None:
    posed, now, counts = pose(2, thresholds=[1.0, 2.0]), begin(0.0, 0.0), []
    for first, second in ((0, 0), (0, 0), (0, 3), (2, 0), (1, 2), (0, 0), (0, 0)):
        now = dual_step(posed, now, sums(first, second))
        counts.append(now.satisfied_for)
    assert counts == [1, 2, 0, 0, 1, 2, 3]


def test_what_was_never_measured_is_not_satisfied() -> None:
    now = begin(0.0, 0.0)
    for count in (0.0, 8.0):
        statistics = sums(-1.0, -1.0)
        statistics.count[1] = count
        now = dual_step(pose(2), now, statistics)
        assert now.satisfied_for == (1 if count else 0)
