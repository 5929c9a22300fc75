"""SIGTERM: the run saves and exits, and the resumed run ends like one that was never interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import rows, same_weights, steps, terminating

from cdt.cluster.notice import notice
from cdt.config import RunConfig
from cdt.errors import Terminated
from cdt.runs.run import Run
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_first_sigterm_is_a_notice_and_the_second_one_is_handled_as_before() -> None:
    received: list[int] = []
    outer = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with notice() as given:
            assert not given.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert given.is_set()
            assert received == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, outer)


def test_a_thread_cannot_handle_signals_and_gets_no_notice() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), list[bool]()

    def in_thread() -> None:
        with notice() as given:
            seen.append(given.is_set())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) == before


def test_at_sigterm_it_saves_and_leaves_and_goes_on_as_if_nothing_had_been(
    home: Path, other: Callable[..., RunConfig]
) -> None:
    config = other()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="continue with `cdt resume"):
        train(config, terminating(6))
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps(config.directory) == [4, 6]
    last = rows(config.directory, "events.jsonl")[-1]
    assert (last["event"], last["text"]) == ("left", "asked to leave: saved after 6 of 8 steps")
    resume(config.directory)
    assert same_weights(config.directory, home / "whole")
    assert rows(config.directory, "dual.jsonl") == rows(home / "whole", "dual.jsonl")


def test_what_batches_said_before_a_save_in_mid_period_is_not_forgotten(
    other: Callable[..., RunConfig],
) -> None:
    both = {
        "four": {"class": 4, "max_loss": 50.0, "window": 0.5},
        "five": {"class": 5, "max_loss": 50.0, "window": 0.5},
    }
    settings = {"constraints": both, "dual": {"estimate": "training"}, "train": {"log_steps": 1}}
    config = other(**settings)
    with pytest.raises(Terminated):
        train(config, terminating(7))
    assert steps(config.directory) == [4, 7]
    resume(config.directory)
    calm = config.model_copy(update={"run": config.run.model_copy(update={"name": "calm"})})
    train(calm)
    assert same_weights(config.directory, calm.directory)
    assert rows(config.directory, "dual.jsonl") == rows(calm.directory, "dual.jsonl")
    assert Run(config.directory).state == Run(calm.directory).state


def test_a_notice_at_the_last_step_comes_too_late(other: Callable[..., RunConfig]) -> None:
    config = other()
    assert train(config, terminating(8)).state.step == 8
    assert rows(config.directory, "events.jsonl")[-1]["event"] == "end"
