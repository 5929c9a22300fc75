"""dual.jsonl: every constraint where they are few, those that matter where they are many."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from problems import begin, pose, sums, through_json

from cdt.dual import DualProblem, DualState, Sums, dual_step, journal_rows, journaled, replayed, worst_constraint

THREE = pose(
    3,
    names=("four", "five", "male"),
    shares=[0.01, 0.02, 0.4],
    baseline=[30.0, 40.0, 0.0],
    thresholds=[28.0, 41.0, 12.5],
    rules=["mass", "mass", "ascent"],
)


def test_journal_rows_name_what_the_journal_promises() -> None:
    before = dataclasses.replace(begin(0.1, 0.1, 0.1), period=4)
    after = dual_step(THREE, before, sums(-1.0, 1.0, 13.0))
    rows = through_json(journal_rows(THREE, after, step=120))
    assert [row["constraint"] for row in rows] == ["four", "five", "male"]
    assert rows[0] == {
        "period": 5,
        "step": 120,
        "constraint": "four",
        "lambda": after.lambdas[0],
        "average": after.average[0],
        "loss": 29.0,
        "stderr": pytest.approx(math.sqrt(1 / 7)),
        "count": 8,
        "threshold": 28.0,
        "slack": -1.0,
        "satisfied": False,
        "share": None,
    }
    assert [set(row) for row in rows] == [set(rows[0])] * 3
    assert (rows[1]["slack"], rows[1]["satisfied"]) == (0.0, True)


def test_of_chosen_constraints_the_rows_are_the_same() -> None:
    after = dual_step(THREE, begin(0.1, 0.1, 0.1), sums(-1.0, 1.0, 13.0))
    rows = journal_rows(THREE, after, step=1)
    assert journal_rows(THREE, after, step=1, chosen=np.array([0, 2])) == [rows[0], rows[2]]


def test_a_loss_that_ran_away_is_null_in_strict_json() -> None:
    ran_away = Sums(np.array([np.inf]), np.array([np.inf]), np.array([4.0]))
    one = pose(1, baseline=1.0, thresholds=1.0)
    after = dual_step(one, begin(0.5), ran_away)
    row = through_json(journal_rows(one, after, step=1)[0])
    assert (row["loss"], row["stderr"], row["satisfied"]) == (None, None, None)
    assert through_json(after.to_json())["losses"] == [None]


def test_the_worst_constraint_has_the_least_slack() -> None:
    after = dual_step(THREE, begin(0.1, 0.1, 0.1), sums(-2.5, 0.5, 15.0))
    assert worst_constraint(THREE, after) == ("male", -2.5)


def test_before_the_first_step_no_constraint_is_worst() -> None:
    assert worst_constraint(None, begin()) is None
    assert worst_constraint(THREE, begin(0.0, 0.0, 0.0)) is None


def period(problem: DualProblem, number: int, state: DualState, means: np.ndarray) -> tuple[DualState, list[int]]:
    """The state after period ``number`` and the rows that it leaves."""
    before = dataclasses.replace(state, period=number - 1)
    after = dual_step(problem, before, sums(*means))
    return after, journaled(problem, before, after).tolist()


def test_a_step_that_is_done_again_is_seen_and_one_with_another_outcome_is_named() -> None:
    state, rows = begin(0.1, 0.1, 0.1), []
    for step in (4, 8, 12):
        before, state = state, dual_step(THREE, state, sums(-1.0, 1.0, 13.0))
        rows += journal_rows(THREE, state, step)
    assert replayed(rows) == ([], [])
    rows += through_json(journal_rows(THREE, state, 12))  # a worker died, and the last period was trained again
    assert replayed(rows) == ([12], [])
    nudged = dataclasses.replace(before, lambdas=np.nextafter(before.lambdas, 1))
    rows += journal_rows(THREE, dual_step(THREE, nudged, sums(-1.0, 1.0, 13.0)), 12)
    assert replayed(rows) == ([12], [12])
    assert replayed([*rows, rows[0]]) == ([4, 12], [12])


@pytest.mark.parametrize("m", [1, 100])
def test_up_to_a_hundred_constraints_have_a_row_each_period(m: int) -> None:
    for number in (1, 2, 55, 100):
        _, rows = period(pose(m), number, begin(*np.zeros(m)), np.full(m, -1.0))
        assert rows == list(range(m))


def test_of_a_thousand_the_binding_violated_and_changed_have_rows_each_period_and_all_now_and_then() -> None:
    m, rng = 1000, np.random.default_rng(0)
    problem = pose(m)
    held, hurt = rng.permutation(m)[:60].reshape(2, 30)
    lambdas, means = np.zeros(m), np.full(m, -1.0)
    lambdas[held], means[held] = 3.0, 0.0  # binding, at rest
    means[hurt] = rng.uniform(1.0, 5.0, 30)  # violated: their multipliers change
    full = []
    for number in range(1, 301):
        _, rows = period(problem, number, begin(*lambdas), means)
        if len(rows) == m:
            full.append(number)
        else:
            assert rows == sorted([*held.tolist(), *hurt.tolist()])
    assert full == [1, 101, 201]


def test_of_very_many_that_matter_the_strongest_the_worst_and_the_most_changed_have_rows() -> None:
    m, rng = 1000, np.random.default_rng(1)
    problem, lambdas = pose(m, etas=rng.uniform(0.001, 0.1, m)), rng.exponential(1, m)
    means = rng.uniform(-1, 5, m)
    after, rows = period(problem, 2, begin(*lambdas), means)
    change = np.abs(after.lambdas - lambdas)
    best = {int(i) for score in (after.lambdas, means, change) for i in np.argsort(score)[-50:]}
    assert set(rows) == best
    assert rows == sorted(rows)
    assert len(rows) <= 150


def test_negative_multipliers_are_as_strong_as_positive_ones() -> None:
    m = 200
    problem, lambdas = pose(m, equal=True, shares=0.5), np.linspace(0.0, 0.1, m)
    lambdas[7] = -0.4
    _, rows = period(problem, 2, begin(*lambdas), np.zeros(m))
    assert 7 in rows
    assert len(rows) == 50


def test_what_was_never_measured_has_a_row_only_if_it_has_a_multiplier() -> None:
    m = 200
    before = dataclasses.replace(begin(*np.where(np.arange(m) == 5, 1.0, 0.0)), period=1)
    nothing = Sums(np.zeros(m), np.zeros(m), np.zeros(m))
    after = dual_step(pose(m), before, nothing)
    assert journaled(pose(m), before, after).tolist() == [5]
