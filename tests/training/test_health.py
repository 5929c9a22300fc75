from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.training.health import REPORTS, DivergedError, Health


def test_updates_left_out_are_counted_in_a_row_and_between_reports() -> None:
    health = Health(patience=3)
    assert [health.count(applied) for applied in (False, False, True, False, False, False)] == [False] * 5 + [True]
    assert (health.in_a_row, health.take(), health.take()) == (3, 5, 0)


def test_a_spike_is_told_once_the_loss_is_known() -> None:
    health = Health(patience=1)
    losses = [1.0, 0.9, 5.0, 0.8, 0.85, 0.8, 1.2, 0.8, 4.0, 0.8]
    told = [loss for loss in losses if health.spike(loss)]
    assert told == [4.0]
    assert health.spike(8.0) == "the loss is 8; the median of the last 10 reports is 0.875"


@given(st.floats(1e-6, 1e6), st.integers(REPORTS // 4, 2 * REPORTS))
def test_a_loss_that_stays_and_one_that_falls_are_no_spikes(first: float, reports: int) -> None:
    health = Health(patience=1)
    assert not any(health.spike(first) for _ in range(reports))
    assert not any(health.spike(first / (1 + k)) for k in range(reports))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_window_without_a_loss_does_not_spoil_those_after_it(loss: float) -> None:
    health = Health(patience=1)
    for _ in range(6):
        health.spike(1.0)
    health.spike(loss)
    assert health.spike(1.01) is None
    assert health.spike(3.0)


def test_divergence_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("told", 7)))
    assert (str(error), error.batch) == ("told", 7)
