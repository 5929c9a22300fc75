from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdt.constraints import (
    Calibration,
    Frequency,
    GeneratedFrequency,
    MaxExcess,
    MaxKl,
    MaxLoss,
    MinFrequency,
    Population,
    Prior,
    Requirements,
)
from cdt.constraints.window import auto_window
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader, normalise
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.dual import DEFAULT_ETA, DualProblem
from cdt.dual.config import DualConfig
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.training.calibrate import check_prior, check_stable, describe, find_windows, first_state, pose_problem

PROCESS = VariancePreserving.from_config(DiffusionConfig())
COUNTS = {"a": 70, "b": 20, "c": 10}
POPULATION = Population(np.repeat(np.arange(3), list(COUNTS.values())), list(COUNTS), {}, "here")
CONSTRAINTS = {
    "c": MinFrequency(classes=("c",), min_frequency=0.3),
    "sharp": MaxLoss(classes=("a",), max_loss=5.0),
    "b": MinFrequency(classes=("b",), min_frequency=0.25),
}
REQUIREMENTS = Requirements.bind(CONSTRAINTS, POPULATION)
CALIBRATIONS = [
    Calibration(loss=loss, share=share, window=window)
    for loss, share, window in ((9.0, 0.1, 0.5), (4.0, 0.7, 10.0), (7.0, 0.2, -1.0))
]


def posed(requirements: Requirements = REQUIREMENTS, room: int = 9, **config: Any) -> DualProblem:
    return pose_problem(requirements, CALIBRATIONS, DualConfig(**config), room)


def test_thresholds_are_log_ratios_and_absolute_losses() -> None:
    problem = posed(cap=3.0, eta=0.5)
    assert problem.names == ("c", "sharp", "b")
    np.testing.assert_allclose(problem.shares, [0.1, 0.7, 0.2])
    np.testing.assert_allclose(problem.thresholds, [9 - math.log(3), 5, 7 - math.log(1.25)])
    assert problem.rules.tolist() == ["mass", "ascent", "mass"]
    assert (problem.cap, problem.etas.tolist()) == (3.0, [0.5, 0.5, 0.5])
    assert problem.links.tolist() == ["identity"] * 3
    assert problem.draws.all()
    assert not problem.equal.any()


def test_step_sizes_are_those_of_the_rules_or_of_the_statistic() -> None:
    judged = GeneratedFrequency.model_validate(
        {"class": "b", "generated_frequency": {"min": 0.2, "classifier": "judge.safetensors"}}
    )
    exact = Frequency(classes=("c",), frequency=0.3)
    problem = posed(Requirements.bind({**CONSTRAINTS, "b": judged, "c": exact}, POPULATION))
    assert problem.etas.tolist() == [DEFAULT_ETA["mass"], DEFAULT_ETA["ascent"], 0.2]
    assert problem.kp.tolist() == [0, 0, 1]
    assert problem.links.tolist() == ["identity", "identity", "negative_log"]
    assert problem.equal.tolist() == [True, False, False]
    np.testing.assert_allclose(problem.thresholds[2], -math.log(0.2))


def test_a_measured_share_of_the_warm_model_counts() -> None:
    measured = [replace(CALIBRATIONS[0], share=0.02, share_measured=True), *CALIBRATIONS[1:]]
    problem = pose_problem(REQUIREMENTS, measured, DualConfig(), 9)
    np.testing.assert_allclose(problem.thresholds[0], 9 - math.log(0.3 / 0.02))


@pytest.mark.parametrize(
    ("share", "measured", "window", "max_kl", "refused"),
    [
        (0.02, True, "auto", 0.5, False),  # .02 -> .3 costs .02 log(.02/.3) + .98 log(.98/.7) = 0.276 nats
        (0.02, True, "auto", 0.2, True),
        (0.02, True, None, 0.2, True),
        (0.02, True, 0.5, 0.2, False),  # of a window that may see less
        (0.02, False, "auto", 0.2, False),
        (0.31, True, "auto", 0.2, False),
    ],
)
def test_a_floor_that_costs_more_than_the_priors_budget_is_refused(
    share: float, measured: bool, window: float | str | None, max_kl: float, refused: bool
) -> None:
    judged = {"class": "c", "generated_frequency": {"min": 0.3, "classifier": "judge.safetensors"}}
    constraints = {
        "rare": GeneratedFrequency.model_validate(judged),
        "old": Prior.model_validate({"prior": {"max_kl": max_kl}, "window": window}),
    }
    classes = np.append(POPULATION.classes, np.full(5, 3))
    population = replace(POPULATION, classes=classes, class_names=["a", "b", "c", "old"], replay=np.arange(100, 105))
    calibrations = [Calibration(1.0, share, 0.5, share_measured=measured), Calibration(0.0, 0.0, 0.5)]
    requirements = Requirements.bind(constraints, population)
    if not refused:
        check_prior(requirements, calibrations)
        return
    told = r"constraints.rare: a share of 0.3 is at least 0.28 nats from the pretrained model, whose samples have 0.02"
    with pytest.raises(InputError, match=told):
        check_prior(requirements, calibrations)


def test_budgets_relative_to_references() -> None:
    constraints = {
        "kl": MaxKl(classes=("a",), max_kl=0.5, reference=Path("runs/only-a")),
        "warm": MaxExcess(classes=("b",), max_excess=0.1),
        "base": MaxExcess(classes=("c",), max_excess=-0.1, reference="base"),
    }
    found = [replace(CALIBRATIONS[i], reference=reference) for i, reference in enumerate((8.0, None, 5.0))]
    problem = pose_problem(Requirements.bind(constraints, POPULATION), found, DualConfig(), 9)
    np.testing.assert_allclose(problem.thresholds, [8.5, 4.4, 4.5])


def test_resilience_that_oscillates_is_refused() -> None:
    requirements = Requirements.bind({"four": MaxLoss(classes=("a",), max_loss=1.0)}, POPULATION)
    check_stable(requirements, DualConfig(gamma=1.9, eta=0.5))
    with pytest.raises(InputError, match=r"dual.gamma: 2 with a step size of 0.5 .*: eta \* 2 \* gamma is 2 "):
        check_stable(requirements, DualConfig(gamma=2.0, eta=0.5))


def test_a_constraint_that_was_not_measured_is_news_unless_they_take_turns() -> None:
    assert posed(room=3).every_period
    assert not posed(room=2).every_period
    assert posed(room=2, estimate="training").every_period


def test_a_probe_is_counted_from_its_calibration_and_training_losses_from_zero() -> None:
    assert posed().baseline.tolist() == [9, 4, 7]
    assert posed(estimate="training").baseline.tolist() == [0, 0, 0]


def test_one_rule_for_all_can_be_asked_for() -> None:
    assert posed(rule="ascent").rules.tolist() == ["ascent"] * 3


def test_floors_start_at_their_closed_form() -> None:
    """1 + Lambda = (1 - 0.3) / (1 - 0.55), and then every floor is met exactly."""
    state = first_state(REQUIREMENTS, DualConfig())
    total = 0.7 / 0.45
    assert state.period == 0
    np.testing.assert_allclose(state.lambdas, [0.3 * total - 0.1, 0, 0.25 * total - 0.2])
    np.testing.assert_allclose((REQUIREMENTS.shares + state.lambdas)[[0, 2]] / (1 + state.lambdas.sum()), [0.3, 0.25])


def test_the_start_respects_cap_and_wish() -> None:
    assert first_state(REQUIREMENTS, DualConfig(cap=0.1)).lambdas.tolist() == [0.1, 0, 0.1]
    assert first_state(REQUIREMENTS, DualConfig(start="zero")).lambdas.tolist() == [0, 0, 0]
    unbound = Requirements.bind({}, POPULATION)
    assert first_state(unbound, DualConfig()).lambdas.shape == (0,)


def test_an_exact_share_below_the_natural_one_starts_with_a_negative_multiplier() -> None:
    less = Requirements.bind({"a": Frequency(classes=("a",), frequency=0.5)}, POPULATION)
    lambdas = first_state(less, DualConfig()).lambdas
    np.testing.assert_allclose((0.7 + lambdas) / (1 + lambdas), 0.5)
    none = Requirements.bind({"a": Frequency(classes=("a",), frequency=0.01)}, POPULATION)
    np.testing.assert_allclose(first_state(none, DualConfig()).lambdas, -0.63)  # a tenth of its weight is left


def test_what_was_calibrated_is_written_in_full() -> None:
    rows = describe(REQUIREMENTS, CALIBRATIONS, posed())
    assert [row["constraint"] for row in rows] == ["c", "sharp", "b"]
    assert rows[0] == {
        "constraint": "c",
        "requirement": "class c: at least 0.3 of the generated samples",
        "share_in_data": 0.1,
        "asks_for_share": True,
        "window": 0.5,
        "warm_loss": 9.0,
        "warm_share": None,
        "reference_loss": None,
        "threshold": pytest.approx(9 - math.log(3)),
    }


def test_windows_are_found_given_or_the_full_range(digits: Index, alone: Ranks) -> None:
    population = Population(digits.classes, digits.class_names, {}, "digits")
    constraints = {
        "auto": MinFrequency(classes=("4",), min_frequency=0.2),
        "given": MinFrequency(classes=("5",), min_frequency=0.2, window=-1.5),
        "full": MaxLoss(classes=("6",), max_loss=9.0),
        "everything": MaxLoss(classes=tuple(digits.class_names), max_loss=9.0, window="auto"),
    }
    requirements = Requirements.bind(constraints, population)
    reader = ImageReader(digits, cache_mb=0)
    found = find_windows(requirements, reader, PROCESS, alone, seed=1)
    assert found[1:].tolist() == [-1.5, PROCESS.logsnr_max, PROCESS.logsnr_max]
    images = normalise(reader.images(np.arange(digits.count)))
    four = digits.classes == 4
    exact = auto_window(images[four], images[~four], float(four.mean()), PROCESS.logsnr_min, PROCESS.logsnr_max, 1)
    assert abs(found[0] - exact) < 0.75  # a thousand exemplars stand for all
    assert -3 < found[0] < 3
