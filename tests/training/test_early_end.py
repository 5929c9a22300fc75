"""Dual training that ends early because all requirements are satisfied, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tiny_runs import interrupting, rows

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.runs.run import Run
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


EASY = {"four": {"class": 4, "min_frequency": 1e-6, "window": 0}, "five": {"class": 5, "max_loss": 1e6}}


def test_dual_training_ends_when_all_requirements_are_satisfied_for_long_enough(
    other: Callable[..., RunConfig],
) -> None:
    config = other(constraints=EASY, dual={"stop_when_satisfied_for": 2}, train={"dual_steps": 40, "cooldown_steps": 2})
    run = train(config)
    assert run.state.step == 4 + 2 * 2 + 2
    assert rows(config.directory, "metrics.jsonl")[-1]["lr"] < config.train.lr  # the cool-down came all the same
    assert [row["period"] for row in rows(config.directory, "dual.jsonl")] == [1, 1, 2, 2]
    assert "satisfied for 2 periods" in json.dumps(rows(config.directory, "events.jsonl"))
    with pytest.raises(InputError, match="is complete: dual training ended with all requirements satisfied"):
        resume(config.directory)


def test_a_run_that_ended_early_goes_on_under_other_budgets(other: Callable[..., RunConfig]) -> None:
    config = other(constraints=EASY, dual={"stop_when_satisfied_for": 1}, train={"dual_steps": 6})
    assert train(config).state.step == 6
    assert resume(config.directory, ["constraints.five.max_loss=0.1"]).state.step == 10
    with pytest.raises(InputError, match="is complete: 10 of 10 steps are done"):
        resume(config.directory)


def test_an_extension_that_dies_before_its_first_checkpoint_is_not_taken_for_an_early_end(
    other: Callable[..., RunConfig],
) -> None:
    config = other()
    train(config)
    with pytest.raises(KeyboardInterrupt):
        resume(config.directory, ["train.dual_steps=8"], interrupting(10, KeyboardInterrupt()))
    assert Run(config.directory).state.step == 8
    assert resume(config.directory).state.step == 12


def test_an_early_end_survives_an_interruption_in_the_cooldown(other: Callable[..., RunConfig]) -> None:
    config = other(
        constraints=EASY,
        dual={"stop_when_satisfied_for": 1},
        train={"dual_steps": 40, "cooldown_steps": 4, "log_steps": 1},
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(8, KeyboardInterrupt()))
    assert Run(config.directory).state.step == 6
    assert resume(config.directory).state.step == 10
