"""Odd cases speak once, in one sentence with the numbers, and are silent where nothing is odd."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from problems import MOVING, begin, pose, steps, sums, through_json

from cdt.dual import DualProblem, DualState, Sums, dual_step, news
from cdt.dual.rules import DEFAULT_ETA
from cdt.dual.watch import PATIENCE

News = list[tuple[str, list[str], str]]


def hear(posed: DualProblem, now: DualState, told: list[Sums]) -> tuple[DualState, list[News]]:
    """The news of each period; the state goes through a checkpoint after every one."""
    heard = []
    for each in told:
        after = dual_step(posed, now, each)
        heard.append(news(posed, now, after))
        now = DualState.from_json(through_json(after.to_json()))
    return now, heard


def flat(heard: list[News]) -> News:
    return [item for period in heard for item in period]


def test_the_cap_is_reported_by_the_step_that_reaches_it() -> None:
    """With its loss and threshold; against those that are strong as well."""
    posed = pose(
        3, names=("four", "five", "male"), shares=[0.01, 0.02, 0.4], thresholds=[28.0, 41.0, 12.5], cap=0.1,
        baseline=[30.0, 40.0, 0.0], rules=["mass", "mass", "ascent"],
    )  # fmt: skip
    before = begin(0.099, 0.01, 0.1)
    after = dual_step(posed, before, sums(20.0, -1.0, 30.0))
    assert after.lambdas.tolist() == [0.1, pytest.approx(0.03 * np.exp(-2 * DEFAULT_ETA["mass"]) - 0.02), 0.1]
    [(alarm, names, text)] = news(posed, before, after)
    assert (alarm, names) == ("cap", ["four", "male"])
    assert text == (
        "its multiplier is at the end of its range; perhaps it cannot be satisfied: "
        "four (lambda 0.1, loss 50.000 against a threshold of 28.000 nats), "
        "male (lambda 0.1, loss 30.000 against a threshold of 12.500 nats); it competes with five (lambda 0.00882)"
    )


@pytest.mark.parametrize("rule", MOVING)
def test_the_cap_is_reported_once_though_it_is_left_and_reached_again(rule: str) -> None:
    posed = pose(1, rules=rule, etas=0.2, cap=0.3)
    _, heard = hear(posed, begin(0.0), [sums(v, deviation=0.1) for v in (2.0, 9.0, 9.0, -3.0, -3.0, 9.0, 9.0)])
    [(alarm, names, text)] = flat(heard)
    assert (alarm, names) == ("cap", ["c0"])
    assert "competes" not in text


def test_an_equality_that_can_take_no_more_away_is_reported() -> None:
    """At a tenth of the weight and still too frequent; not where it is met, and no inequality at lambda 0."""
    posed = pose(3, equal=[True, True, False], rules="mass", etas=1.0, shares=0.2)
    after = dual_step(posed, begin(-0.18, -0.18, 0.0), sums(-1.0, 0.0, -1.0, deviation=0.1))
    [(alarm, names, text)] = news(posed, begin(-0.18, -0.18, 0.0), after)
    assert (alarm, names) == ("cap", ["c0"])
    assert "c0 (lambda -0.18, loss -1.000 against a threshold of 0.000 nats)" in text


def test_a_multiplier_that_starts_at_its_cap_and_is_not_measured_says_so() -> None:
    posed, before = pose(1, cap=0.5), begin(0.5)
    told = news(posed, before, dual_step(posed, before, Sums(np.zeros(1), np.zeros(1), np.zeros(1))))
    assert "c0 (lambda 0.5, loss not measured yet against a threshold" in next(t for a, _, t in told if a == "cap")


def test_each_constraint_at_its_cap_is_told_by_itself_and_of_those_that_were_there_before() -> None:
    posed = pose(2, etas=0.1, cap=0.5)
    _, heard = hear(posed, begin(0.0, 0.0), [sums(3.0, 1.0)] * 6)
    assert [[names for _, names, _ in period] for period in heard] == [[], [["c0"]], [], [], [["c1"]], []]
    assert heard[1][0][2].endswith("; it competes with c1 (lambda 0.2)")
    assert heard[4][0][2].endswith("; it competes with c0 (lambda 0.5)")


def test_of_many_at_once_three_are_described_and_all_are_named() -> None:
    posed = pose(5, etas=1.0, cap=1.0)
    before = begin(*[0.0] * 5)
    [(_, names, text)] = news(posed, before, steps(posed, before, 2.0, deviation=0.01))
    assert names == [f"c{i}" for i in range(5)]
    assert text.count("lambda 1,") == 3
    assert text.endswith(" (and 2 more)")


def test_a_feasible_problem_is_silent() -> None:
    """Losses that answer within the noise that they have, multipliers below the cap, samples in every period."""
    rng = np.random.default_rng(0)
    posed = pose(2, shares=0.05, rules="mass", etas=0.2, thresholds=np.log([10.0, 5.0]), cap=10.0)
    now, heard = begin(0.0, 0.0), []
    for _ in range(200):
        frequencies = (posed.shares + now.lambdas) / (1 + now.lambdas.sum())
        noise = rng.normal(scale=0.02, size=2)
        now, news_now = hear(posed, now, [sums(*(noise - np.log(frequencies)), count=64, deviation=0.16)])
        heard += news_now
    np.testing.assert_allclose(now.average, np.array([0.1, 0.2]) * 9 / 7 - 0.05, rtol=0.1)
    assert flat(heard) == []


def test_a_loss_that_does_not_answer_is_reported_after_patience() -> None:
    """Once lambda has doubled its class's mass; with what moved and what did not."""
    posed = pose(2, names=("deaf", "fair"), shares=0.05, rules="mass", etas=0.1, thresholds=[2.0, 5.0])
    told = [sums(1.0, 4.0, deviation=0.1)] * 3 + [sums(3.0, 4.0, deviation=0.1)] * (PATIENCE + 10)
    now, heard = hear(posed, begin(0.1, 0.0), told)
    [(alarm, names, text)] = flat(heard)
    assert heard[3 + PATIENCE] != []  # violated since period 4, told PATIENCE periods later
    assert (alarm, names) == ("no response", ["deaf"])
    held = 0.15 * np.exp(-0.3) - 0.05  # in the period in which the violation began
    then = 0.15 * np.exp(-0.3 + 0.1 * (PATIENCE + 1)) - 0.05
    error = 0.1 / np.sqrt(7)
    assert text == (
        "violated for many periods although lambda grew: its loss does not respond: "
        f"deaf (since period 4 lambda went from {held:.3g} to {then:.3g}, the loss from 3.000 to 3.000 nats, "
        f"standard error {error:.3f})"
    )
    assert now.violated_since.tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    ("fall", "eta", "told"),
    [
        (0.0, 0.1, True),
        (0.01, 0.1, True),  # not more than two standard errors
        (0.5, 0.1, False),
        (0.0, 0.001, False),  # the multiplier has hardly moved
    ],
)
def test_only_what_moved_its_multiplier_and_not_its_loss_is_deaf(fall: float, eta: float, told: bool) -> None:
    posed = pose(1, rules="mass", etas=eta)
    means = np.linspace(1.0, 1.0 - fall, 2 * PATIENCE)
    _, heard = hear(posed, begin(0.0), [sums(v, deviation=0.1) for v in means])
    assert [alarm for alarm, _, _ in flat(heard)] == ["no response"] * told


def test_a_violation_that_is_interrupted_begins_anew() -> None:
    posed = pose(1, rules="mass", etas=0.2)
    almost = [sums(1.0, deviation=0.1)] * PATIENCE
    now, heard = hear(posed, begin(0.0), [*almost, sums(-0.1), *almost])
    assert flat(heard) == []
    assert now.violated_since.tolist() == [PATIENCE + 2]
    _, heard = hear(posed, now, almost[:1])
    assert len(flat(heard)) == 1


@pytest.mark.parametrize(
    ("rule", "eta", "error", "told"),
    [
        ("mass", 0.1, 2.4, False),
        ("mass", 0.1, 2.6, True),
        ("ascent", 0.1, 2.4 * 0.3, False),  # of a mass of 0.3
        ("ascent", 0.1, 2.6 * 0.3, True),
    ],
)
def test_a_step_that_is_mostly_noise_is_reported(rule: str, eta: float, error: float, told: bool) -> None:
    """From a standard error of a quarter of the mass that it moves."""
    posed = pose(1, rules=rule, etas=eta, shares=0.1)
    told_sums = sums(0.0, count=2, deviation=error)  # of two observations d apart from their mean, the error is d
    _, heard = hear(posed, begin(0.2), [told_sums] * 3)
    sentence = f"c0 (standard error {error:.3g} nats, eta 0.1)"
    expected = f"the estimate is too noisy for the step size: lower dual.eta or raise probe.draws: {sentence}"
    assert flat(heard) == [("noise", ["c0"], expected)] * told


def test_a_period_without_samples_is_reported_once() -> None:
    empty = Sums(np.array([8.0, 0.0]), np.array([8.0, 0.0]), np.array([8.0, 0.0]))
    _, heard = hear(pose(2), begin(0.1, 0.1), [sums(-1.0, -1.0), empty, empty, sums(-1.0, -1.0), empty])
    assert heard == [[], [("no samples", ["c1"], "no samples in this period, the multiplier stays: c1")], [], [], []]


def test_what_was_not_its_turn_is_no_news() -> None:
    empty = Sums(np.array([8.0, 0.0]), np.array([8.0, 0.0]), np.array([8.0, 0.0]))
    _, heard = hear(pose(2, every_period=False), begin(0.1, 0.1), [empty] * 3)
    assert flat(heard) == []


@pytest.mark.parametrize("changes", [{"equal": True}, {"links": "negative_log"}, {"rules": "mass"}, {"kp": 0.5}])
def test_before_anything_was_measured_only_the_lack_of_samples_is_news(changes: dict[str, Any]) -> None:
    nothing = Sums(np.zeros(2), np.zeros(2), np.zeros(2))
    _, heard = hear(pose(2, **changes), begin(0.1, 0.1), [nothing] * (PATIENCE + 5))
    assert [(alarm, names) for alarm, names, _ in flat(heard)] == [("no samples", ["c0", "c1"])]


def test_news_are_of_what_this_step_found() -> None:
    after = dataclasses.replace(begin(0.0), told=np.array([[True], [False], [False], [True]]))
    assert [alarm for alarm, _, _ in news(pose(1), begin(0.0), after)] == ["cap", "no samples"]
    assert news(pose(1), after, after) == []


def test_a_penalty_that_has_not_begun_to_act_is_not_noisy_and_one_that_acts_is_judged_by_its_own_size() -> None:
    """Its samples have no share that the multiplier would be added to."""
    posed = pose(2, shares=[0.0, 0.0], actuators=["draw", "penalty"], etas=0.05)
    loud = sums(-1.0, -1.0, count=2, deviation=3.0)
    _, heard = hear(posed, begin(0.0, 0.0), [loud])
    assert [names for alarm, names, _ in flat(heard) if alarm == "noise"] == [["c0"]]
    _, heard = hear(posed, begin(1.0, 0.5), [loud])
    assert [names for alarm, names, _ in flat(heard) if alarm == "noise"] == [["c1"]]
