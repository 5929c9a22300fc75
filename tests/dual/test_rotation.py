"""Which constraints are measured next, where not all can be."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import begin, pose, through_json

from cdt.dual import DualProblem, DualState, Sums, dual_step, measured_next
from cdt.dual.rotation import NEAR


def known(losses: np.ndarray, lambdas: np.ndarray, period: int = 0) -> DualState:
    """Every constraint was measured."""
    return dataclasses.replace(begin(*lambdas), losses=losses, period=period)


@st.composite
def cases(draw: st.DrawFn) -> tuple[DualProblem, DualState, int, np.ndarray]:
    """Up to half the room binds: a problem, a state, the room, the binding ones."""
    m = draw(st.integers(2, 60))
    room = draw(st.integers(1, m - 1))
    chosen = draw(st.lists(st.integers(0, m - 1), max_size=room // 2, unique=True))
    binding = np.isin(np.arange(m), chosen)
    violated = np.array(draw(st.lists(st.booleans(), min_size=m, max_size=m)))
    losses = np.where(binding & violated, 1.0, -2 * NEAR)
    lambdas = np.where(binding & ~violated, 0.3, 0.0)
    return pose(m, etas=0.0), known(losses, lambdas, draw(st.integers(0, 1000))), room, np.flatnonzero(binding)


def next_period(posed: DualProblem, now: DualState, room: int) -> tuple[DualState, np.ndarray]:
    """Measures what is to be measured, and finds what was known."""
    chosen = measured_next(posed, now, room)
    count = np.isin(np.arange(len(posed.names)), chosen).astype(float)
    return dual_step(posed, now, Sums(count * now.losses, count * now.losses**2, count)), chosen


@given(case=cases())
def test_all_are_measured_in_turn_and_the_binding_ones_each_period(
    case: tuple[DualProblem, DualState, int, np.ndarray],
) -> None:
    posed, now, room, binding = case
    m, turns = len(posed.names), room - len(binding)
    seen = []
    for _ in range(math.ceil((m - len(binding)) / turns)):
        now, chosen = next_period(posed, now, room)
        assert len(chosen) == room
        assert (np.diff(chosen) > 0).all()
        assert np.isin(binding, chosen).all()
        seen.append(chosen)
    assert np.unique(np.concatenate(seen)).tolist() == list(range(m))


@given(case=cases())
def test_it_is_a_function_of_the_state_that_survives_a_checkpoint(
    case: tuple[DualProblem, DualState, int, np.ndarray],
) -> None:
    posed, now, room, _ = case
    resumed = DualState.from_json(through_json(now.to_json()))
    assert measured_next(posed, now, room).tolist() == measured_next(posed, resumed, room).tolist()


@given(m=st.integers(0, 20), spare=st.integers(0, 5))
def test_with_room_for_all_all_are_measured(m: int, spare: int) -> None:
    assert measured_next(pose(m), begin(*np.zeros(m)), m + spare).tolist() == list(range(m))


def test_of_more_binding_ones_than_half_the_room_the_worst_are_measured_and_the_others_in_turn() -> None:
    m, room = 40, 8
    losses = np.random.default_rng(0).permutation(m) / m
    posed, now = pose(m, etas=0.0), known(losses, np.full(m, 0.3))
    worst, seen = set(np.argsort(-losses)[: room // 2].tolist()), []
    for _ in range(math.ceil((m - room // 2) / (room // 2))):
        now, chosen = next_period(posed, now, room)
        assert worst <= set(chosen.tolist())
        seen += chosen.tolist()
    assert set(seen) == set(range(m))


def test_slack_near_zero_or_a_multiplier_of_either_sign_is_binding() -> None:
    m = 40
    losses, lambdas = np.full(m, -9.0), np.zeros(m)
    losses[11], losses[12], lambdas[13], lambdas[14] = -0.9 * NEAR, -1.1 * NEAR, 0.1, -0.1
    posed = pose(m, etas=0.0, equal=np.arange(m) == 14)
    losses[14] = 0.0
    now, always = known(losses, lambdas), set(range(m))
    for _ in range(m):
        now, chosen = next_period(posed, now, 8)
        always &= set(chosen.tolist())
    assert always == {11, 13, 14}


@pytest.mark.parametrize(("m", "room"), [(60, 12), (200, 20)])
def test_while_binding_ones_come_and_go_none_waits_longer(m: int, room: int) -> None:
    """A whole dual ascent, in which a third of the constraints binds at the end; half the room is for turns."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        strength = np.where(np.arange(m) % 3 == 0, rng.uniform(0.2, 1.0, m), -rng.uniform(0.2, 2.0, m))
        posed, now = pose(m, etas=0.2, every_period=False), begin(*np.zeros(m))
        waited = np.zeros(m)
        for _ in range(200):
            count = np.isin(np.arange(m), measured_next(posed, now, room)).astype(float)
            now = dual_step(posed, now, Sums(count * (strength - now.lambdas), count * 100.0, count))
            waited = np.where(count > 0, 0, waited + 1)
            assert waited.max() <= math.ceil(m / (room / 2))


def test_a_room_of_one_still_reaches_all() -> None:
    posed, now, seen = pose(5, etas=0.0), known(np.ones(5), np.zeros(5)), []
    for _ in range(5):
        now, chosen = next_period(posed, now, 1)
        seen.append(chosen.item())
    assert sorted(seen) == list(range(5))
