from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cdt.training.schedule import TrainConfig

CONFIG = TrainConfig(warm_steps=100, dual_steps=200, cooldown_steps=50, lr=0.01, lr_warmup_steps=10, ema_decay=0.99)


def test_phases_follow_each_other() -> None:
    phases = [CONFIG.phase(step, constrained=True) for step in range(CONFIG.total_steps)]
    assert phases == ["warm"] * 100 + ["dual"] * 200 + ["cooldown"] * 50
    assert [CONFIG.phase(step, constrained=False) for step in range(350)] == ["plain"] * 300 + ["cooldown"] * 50


def test_without_a_warm_start_constraints_act_from_the_first_step() -> None:
    assert TrainConfig(warm_steps=0).phase(0, constrained=True) == "dual"


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [CONFIG.learning_rate(step) for step in range(CONFIG.total_steps)]
    assert rates[:10] == pytest.approx([0.001 * k for k in range(1, 11)])
    assert rates[10:300] == [0.01] * 290
    assert rates[300:] == pytest.approx([0.01 * (50 - k) / 50 for k in range(50)])
    assert rates[-1] == pytest.approx(0.01 / 50)


def test_without_warm_up_and_cool_down_it_is_constant() -> None:
    config = TrainConfig(lr=0.5, lr_warmup_steps=0, cooldown_steps=0)
    assert {config.learning_rate(step) for step in range(config.total_steps)} == {0.5}


def test_the_average_forgets_its_beginning() -> None:
    assert CONFIG.ema_decay_at(0) == 0.1
    decays = [CONFIG.ema_decay_at(step) for step in range(2000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
    weight_of_the_first = 1.0
    for decay in decays[:100]:
        weight_of_the_first *= decay
    assert weight_of_the_first < 1e-8


def test_checkpoints_at_the_ends_of_phases_and_in_between() -> None:
    assert [step for step in range(1, 351) if CONFIG.saves_after(step)] == [100, 300, 350]
    every = TrainConfig(warm_steps=0, dual_steps=10, cooldown_steps=0, checkpoint_steps=4)
    assert [step for step in range(1, 11) if every.saves_after(step)] == [4, 8, 10]


@pytest.mark.parametrize("wrong", [{"betas": (0.9, 1.0)}, {"lr": float("inf")}, {"ema_decay": 1.0}, {"batch_size": 0}])
def test_settings_that_cannot_train_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainConfig(**wrong)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 40), st.integers(0, 100))
def test_no_step_trains_at_rate_zero(warm: int, dual: int, cooldown: int, warmup: int, step: int) -> None:
    config = TrainConfig(warm_steps=warm, dual_steps=dual, cooldown_steps=cooldown, lr_warmup_steps=warmup)
    if step < config.total_steps:
        assert 0 < config.learning_rate(step) <= config.lr
