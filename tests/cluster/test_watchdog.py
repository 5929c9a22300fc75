"""Which ranks hang, by heartbeats and a clock; with real processes: tests/integration/test_chaos.py."""

from __future__ import annotations

import sys

from cdt.cluster.watchdog import START_S, Beat, Process, Watch, _position


def beat(rank: int, step: int = 1, position: int = 0) -> Beat:
    return Beat(rank, Process("here", 100 + rank), step, f"training/step.py:{30 + rank} (train_step)", position)


def test_whoever_falls_silent_is_named_with_where_it_was() -> None:
    watch = Watch()
    for now in range(10):
        watch.beat(beat(0), now)
        if now < 3:
            watch.beat(beat(1, step=7 + now), now)
    assert watch.hung(7.0, patience=5) is None
    hang = watch.hung(7.5, patience=5)
    assert hang is not None
    assert hang.processes == [Process("here", 101)]
    assert hang.text == (
        "no heartbeat for 5 s from worker 1 (process 101), last at step 9 in training/step.py:31 (train_step)"
    )


def test_one_that_moves_keeps_those_alive_that_wait_for_it() -> None:
    watch = Watch()
    for now in range(20):
        watch.beat(beat(0), now)
        watch.beat(beat(1, position=now), now)
    assert watch.hung(20, patience=5) is None


def test_when_nobody_moves_all_are_named() -> None:
    watch = Watch()
    for now in range(20):
        watch.beat(beat(1), now)
        watch.beat(beat(0), now)
    hang = watch.hung(20, patience=5)
    assert hang is not None
    assert hang.processes == [Process("here", 100), Process("here", 101)]
    assert hang.text.startswith(
        "no worker has made progress for 5 s: worker 0 (process 100) at step 1 in training/step.py:30 ("
    )


def test_who_is_done_or_was_never_there_is_not_missed() -> None:
    watch = Watch()
    assert watch.hung(1e9, patience=1) is None
    watch.beat(beat(0), 0)
    watch.leave(0)
    assert watch.hung(1e9, patience=1) is None


def test_one_that_was_started_has_more_time_for_its_first_sign_of_life() -> None:
    watch = Watch()
    for rank in (0, 1):
        watch.expect(rank, Process("here", 100 + rank), 0)
    watch.beat(beat(0), START_S)
    assert watch.hung(START_S + 4, patience=5) is None
    watch.beat(beat(0), START_S + 5)
    hang = watch.hung(START_S + 6, patience=5)
    assert hang is not None
    assert hang.text == "no heartbeat for 5 s from worker 1 (process 101), last at step 0 in start"
    watch.beat(beat(1), START_S + 6)
    assert watch.hung(START_S + 7, patience=5) is None


def test_each_is_asked_for_its_stack_once() -> None:
    watch = Watch()
    assert not watch.beat(beat(0), 0)
    watch.beat(beat(1), 0)
    watch.show()
    assert [watch.beat(beat(0), 1), watch.beat(beat(0), 2), watch.beat(beat(1), 2)] == [True, False, True]


def test_a_position_changes_with_each_call_that_is_under_way() -> None:
    here, there = _position(sys._getframe()), _position(sys._getframe())
    assert here[0] == there[0] == "start"  # no part of cdt is being called
    assert here[1] != there[1]
