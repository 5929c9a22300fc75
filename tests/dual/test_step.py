"""The dual step as a pure function, its statistics, and its state and journal in JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cdt.dual import DualConfig, DualProblem, DualState, Sums, dual_step, journal_rows, newly_capped, worst_constraint
from cdt.dual.rules import DEFAULT_ETA, RULES
from cdt.errors import InputError
from cdt.settings import parse

finite = st.floats(allow_nan=False, allow_infinity=False)


def problem(**changes: Any) -> DualProblem:
    default = DualProblem(
        names=("four", "five", "male"),
        shares=np.array([0.01, 0.02, 0.4]),
        baseline=np.array([30.0, 40.0, 0.0]),
        thresholds=np.array([28.0, 41.0, 12.5]),
        rules=("mass", "mass", "ascent"),
        cap=10.0,
    )
    return dataclasses.replace(default, **changes)


def state(*lambdas: float) -> DualState:
    return DualState(period=4, lambdas=np.array(lambdas))


def sums(*means: float, count: int = 8) -> Sums:
    """As if each constraint had ``count`` draws with these means and a standard deviation of about 1."""
    n, mean = np.full(len(means), float(count)), np.array(means)
    return Sums(n * mean, n * (mean**2 + 1), n)


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


def test_a_step_size_that_is_given_holds_for_every_rule() -> None:
    after = dual_step(problem(eta=0.05), state(0.1, 0.1, 0.1), sums(-1.0, 1.0, 13.0))
    np.testing.assert_allclose(after.lambdas[[0, 2]], [0.11 * math.exp(0.05) - 0.01, 0.1 + 0.05 * 0.5])


def frozen(*values: Any) -> None:
    """Makes every array of the dataclasses read-only."""
    for value in values:
        for array in vars(value).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False


def test_the_step_is_pure_and_in_float64() -> None:
    arguments = problem(), state(0.1, 0.2, 0.3), sums(-1.0, 2.0, 13.0)
    frozen(*arguments)
    first, second = dual_step(*arguments), dual_step(*arguments)
    for name in ("lambdas", "losses", "errors", "counts"):
        array = getattr(first, name)
        assert array.dtype == np.float64
        assert array.tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("total", [np.nan, np.inf, -np.inf])
def test_without_a_finite_estimate_a_multiplier_stays_as_it_is(total: float) -> None:
    """To the last bit, under either rule; the others move."""
    before = state(1e-18, 1 / 3, 0.2)
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


@pytest.mark.parametrize("rule", RULES)
def test_no_multiplier_grows_beyond_its_cap(rule: str) -> None:
    capped = problem(rules=(rule,) * 3, cap=0.5, eta=1.0)
    after = dual_step(capped, state(0.45, 0.5, 0.0), sums(100.0, 100.0, 100.0))
    assert after.lambdas[:2].tolist() == [0.5, 0.5]
    assert (after.lambdas <= 0.5).all()


def test_without_constraints_the_step_only_counts() -> None:
    nothing = np.zeros(0)
    empty = problem(names=(), shares=nothing, baseline=nothing, thresholds=nothing, rules=())
    after = dual_step(empty, state(), Sums(nothing, nothing, nothing))
    assert (after.period, after.lambdas.tolist()) == (5, [])
    assert journal_rows(empty, after, step=1) == []
    assert worst_constraint(empty, after) is None


values = arrays(np.float64, st.integers(2, 40), elements=st.floats(-100, 100))


def of(draws: np.ndarray) -> Sums:
    return Sums(np.array([draws.sum()]), np.array([(draws**2).sum()]), np.array([float(len(draws))]))


@given(draws=values)
def test_mean_and_standard_error_are_those_of_the_draws(draws: np.ndarray) -> None:
    n = len(draws)
    assert of(draws).mean()[0] == pytest.approx(draws.mean(), abs=1e-9)
    assert of(draws).standard_error()[0] == pytest.approx(draws.std(ddof=1) / math.sqrt(n), abs=1e-4)


@given(draws=values, data=st.data())
def test_sums_add_up_over_any_split_of_the_draws(draws: np.ndarray, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(draws)))
    parts = [vars(of(part)) for part in (draws[:cut], draws[cut:])]
    added = Sums(*(parts[0][name] + parts[1][name] for name in ("total", "squares", "count")))
    np.testing.assert_allclose(added.mean(), of(draws).mean(), atol=1e-9)
    np.testing.assert_allclose(added.standard_error(), of(draws).standard_error(), atol=1e-4)


def test_below_two_draws_there_is_no_standard_error_and_below_one_no_mean() -> None:
    few = Sums(np.array([0.0, 3.0, 4.0]), np.array([0.0, 9.0, 8.0]), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(few.mean(), [np.nan, 3.0, 2.0])
    np.testing.assert_array_equal(few.standard_error(), [np.nan, np.nan, 0.0])


def through_json(tree: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(tree, allow_nan=False))


@given(columns=arrays(np.float64, st.tuples(st.just(3), st.integers(0, 5)), elements=finite), cap=finite)
def test_the_problem_survives_json_to_the_last_bit(columns: np.ndarray, cap: float) -> None:
    m = columns.shape[1]
    there = problem(
        names=tuple(f"c{i}" for i in range(m)),
        shares=columns[0],
        baseline=columns[1],
        thresholds=columns[2],
        rules=("mass",) * m,
        cap=cap,
    )
    back = DualProblem.from_json(through_json(there.to_json()))
    for name, value in vars(there).items():
        if isinstance(value, np.ndarray):
            assert getattr(back, name).tobytes() == value.tobytes()
        else:
            assert getattr(back, name) == value


@given(columns=arrays(np.float64, st.tuples(st.just(4), st.integers(0, 5)), elements=finite | st.just(math.nan)))
def test_the_state_survives_json_to_the_last_bit(columns: np.ndarray) -> None:
    there = DualState(7, *np.where(np.isnan(columns), np.nan, columns))
    back = DualState.from_json(through_json(there.to_json()))
    assert back.period == 7
    for name in ("lambdas", "losses", "errors", "counts"):
        assert getattr(back, name).dtype == np.float64
        assert getattr(back, name).tobytes() == getattr(there, name).tobytes()


def test_a_state_before_the_first_step_survives_json() -> None:
    back = DualState.from_json(through_json(DualState(period=0, lambdas=np.array([0.1])).to_json()))
    assert (back.period, back.lambdas.tolist(), back.losses.shape) == (0, [0.1], (0,))


def test_journal_rows_name_what_the_journal_promises() -> None:
    after = dual_step(problem(), state(0.1, 0.1, 0.1), sums(-1.0, 1.0, 13.0))
    rows = through_json({"rows": journal_rows(problem(), after, step=120)})["rows"]
    assert [set(row) for row in rows] == [
        {"period", "step", "constraint", "lambda", "loss", "stderr", "count", "threshold", "slack", "satisfied"}
    ] * 3
    assert [row["constraint"] for row in rows] == ["four", "five", "male"]
    assert rows[0] == {
        "period": 5,
        "step": 120,
        "constraint": "four",
        "lambda": after.lambdas[0],
        "loss": 29.0,
        "stderr": pytest.approx(math.sqrt(1 / 7)),
        "count": 8,
        "threshold": 28.0,
        "slack": -1.0,
        "satisfied": False,
    }
    assert (rows[1]["slack"], rows[1]["satisfied"]) == (0.0, True)


def test_a_loss_that_ran_away_is_null_in_strict_json() -> None:
    ran_away = Sums(np.array([np.inf]), np.array([np.inf]), np.array([4.0]))
    one = problem(names=("a",), shares=np.ones(1), baseline=np.ones(1), thresholds=np.ones(1), rules=("mass",))
    after = dual_step(one, state(0.5), ran_away)
    row = through_json(journal_rows(one, after, step=1)[0])
    assert (row["loss"], row["stderr"], row["satisfied"]) == (None, None, None)
    assert through_json(after.to_json())["losses"] == [None]


def test_the_worst_constraint_has_the_least_slack() -> None:
    after = dual_step(problem(), state(0.1, 0.1, 0.1), sums(-2.5, 0.5, 15.0))
    assert worst_constraint(problem(), after) == ("male", -2.5)


def test_before_the_first_step_no_constraint_is_worst() -> None:
    assert worst_constraint(None, state()) is None
    assert worst_constraint(problem(), state(0.0, 0.0, 0.0)) is None


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"period": 0}, "period: got 0; must be epoch or an integer >= 1"),
        ({"period": "epch"}, 'period: got "epch"; must be epoch or an integer >= 1; did you mean epoch?'),
        ({"eta": 0}, "eta: got 0; must be null or a finite number > 0"),
        ({"cap": math.inf}, "cap: got Infinity; must be a finite number > 0"),
        ({"rule": "mas"}, 'rule: got "mas"; must be auto, mass or ascent; did you mean mass?'),
        ({"probe_draws": 1}, "probe_draws: got 1; must be an integer >= 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        parse(DualConfig, tree, where="run.yaml")
    assert str(error.value) == f"run.yaml: {line}"


def test_the_cap_is_reported_by_the_step_that_reaches_it() -> None:
    posed = problem(cap=0.1)
    before = state(0.099, 0.01, 0.1)
    after = dual_step(posed, before, sums(20.0, -1.0, 30.0))
    assert after.lambdas.tolist() == [0.1, pytest.approx(0.03 * math.exp(-2 * DEFAULT_ETA["mass"]) - 0.02), 0.1]
    assert newly_capped(posed, before, after) == ["four"]
