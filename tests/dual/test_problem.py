"""The parts of the dual side: sums and their statistics, the state in JSON, settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from problems import begin, pose, through_json

from cdt.dual import ALARMS, DualState, Sums
from cdt.dual.config import DualConfig
from cdt.dual.links import LINKS
from cdt.errors import InputError
from cdt.settings import parse

finite = st.floats(allow_nan=False, allow_infinity=False)
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


def test_sums_of_some_constraints_and_of_disjoint_ones_together() -> None:
    whole = Sums(*np.random.default_rng(0).random((3, 4)))
    parts = [Sums.none(4), Sums.none(4)]
    for part, chosen in zip(parts, ([0, 2], [1, 3]), strict=True):
        for name, values in vars(whole.of(np.array(chosen))).items():
            getattr(part, name)[chosen] = values
    for name, values in vars(parts[0] + parts[1]).items():
        np.testing.assert_array_equal(values, getattr(whole, name))


def test_below_two_draws_there_is_no_standard_error_and_below_one_no_mean() -> None:
    few = Sums(np.array([0.0, 3.0, 4.0]), np.array([0.0, 9.0, 8.0]), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(few.mean(), [np.nan, 3.0, 2.0])
    np.testing.assert_array_equal(few.standard_error(), [np.nan, np.nan, 0.0])


ARRAYS = [
    field.name for field in dataclasses.fields(DualState) if field.name not in ("period", "satisfied_for", "told")
]


@given(
    columns=arrays(np.float64, st.tuples(st.just(len(ARRAYS)), st.integers(0, 5)), elements=finite | st.just(math.nan)),
    data=st.data(),
)
def test_the_state_survives_json_to_the_last_bit(columns: np.ndarray, data: st.DataObject) -> None:
    told = data.draw(arrays(np.bool_, (len(ALARMS), columns.shape[1])))
    named = dict(zip(ARRAYS, np.where(np.isnan(columns), np.nan, columns), strict=True))
    there = DualState(period=7, satisfied_for=3, told=told, **named)
    back = DualState.from_json(through_json(there.to_json()))
    assert (back.period, back.satisfied_for) == (7, 3)
    for name in (*ARRAYS, "told"):
        here, array = getattr(there, name), getattr(back, name)
        assert array.dtype == here.dtype
        assert array.shape == here.shape
        assert array.tobytes() == here.tobytes()


def test_a_state_before_the_first_step_survives_json() -> None:
    back = DualState.from_json(through_json(begin(0.1).to_json()))
    assert (back.period, back.satisfied_for, back.lambdas.tolist(), back.average.tolist()) == (0, 0, [0.1], [0.1])
    assert np.isnan([back.losses, back.errors, back.smoothed]).all()
    assert back.told.shape == (len(ALARMS), 1)
    assert not back.told.any()


@pytest.mark.parametrize("link", LINKS)
def test_slack_is_positive_where_satisfied_and_an_equality_has_some_to_either_side(link: str) -> None:
    problem, tolerance = pose(2, links=link, thresholds=[2.0, 2.0], equal=[False, True]), LINKS[link].tolerance
    for loss, slack in ((1.0, (1.0, tolerance - 1)), (2.0, (0.0, tolerance)), (2.05, (-0.05, tolerance - 0.05))):
        np.testing.assert_allclose(problem.slack(np.full(2, loss)), slack, atol=1e-15)
    assert np.isnan(problem.slack(np.full(2, np.nan))).all()


@pytest.mark.parametrize("link", LINKS)
def test_the_tolerance_of_an_equality_is_a_tenth_of_a_share(link: str) -> None:
    """``|log(f / F)| <= tolerance``."""
    assert math.exp(LINKS[link].tolerance) == pytest.approx(1.1, abs=0.01)
    assert math.exp(-LINKS[link].tolerance) == pytest.approx(0.9, abs=0.01)


def test_multipliers_begin_at_zero_but_those_of_equalities_may_take_nine_tenths_of_the_mass() -> None:
    problem = pose(2, shares=[0.1, 0.3], equal=[False, True])
    np.testing.assert_allclose(problem.lowest, [0.0, -0.27])


def test_a_penalty_is_never_negative_and_draws_nothing() -> None:
    problem = pose(2, shares=[0.3, 0.3], equal=True, actuators=["draw", "penalty"])
    np.testing.assert_allclose(problem.lowest, [-0.27, 0.0])
    assert problem.draws.tolist() == [True, False]


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"period": 0}, "period: got 0; must be epoch or an integer >= 1 and <= 1000000000"),
        (
            {"period": "epch"},
            'period: got "epch"; must be epoch or an integer >= 1 and <= 1000000000; did you mean epoch?',
        ),
        ({"eta": 0}, "eta: got 0; must be null or a finite number > 0 and <= 1e+06"),
        ({"cap": math.inf}, "cap: got Infinity; must be a finite number > 0 and <= 1e+09"),
        ({"rule": "mas"}, 'rule: got "mas"; must be auto, mass, ascent or fixed; did you mean mass?'),
        ({"kp": -1}, "kp: got -1; must be null or a finite number >= 0 and <= 1e+06"),
        ({"nu": 1}, "nu: got 1; must be a finite number >= 0 and < 1"),
        ({"gamma": math.nan}, "gamma: got NaN; must be a finite number >= 0 and <= 1e+06"),
        ({"start": "closed"}, 'start: got "closed"; must be closed_form or zero; did you mean closed_form?'),
        (
            {"stop_when_satisfied_for": 0},
            "stop_when_satisfied_for: got 0; must be null or an integer >= 1 and <= 1000000000",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        parse(DualConfig, tree, where="run.yaml")
    assert str(error.value) == f"run.yaml: {line}"
