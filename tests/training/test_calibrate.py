from __future__ import annotations

import math

import numpy as np
import pytest

from cdt.constraints import MaxLoss, MinFrequency, Population, Requirements
from cdt.constraints.window import auto_window
from cdt.data.index import Index
from cdt.data.reader import ImageReader, normalise
from cdt.diffusion.process import DiffusionConfig, Process
from cdt.dual import DualConfig
from cdt.training.calibrate import describe, find_windows, first_state, pose_problem
from cdt.training.ranks import Ranks

PROCESS = Process.from_config(DiffusionConfig())
COUNTS = {"a": 70, "b": 20, "c": 10}
POPULATION = Population(np.repeat(np.arange(3), list(COUNTS.values())), list(COUNTS), {}, "here")
CONSTRAINTS = {
    "c": MinFrequency(classes=("c",), min_frequency=0.3),
    "sharp": MaxLoss(classes=("a",), max_loss=5.0),
    "b": MinFrequency(classes=("b",), min_frequency=0.25),
}
REQUIREMENTS = Requirements.bind(CONSTRAINTS, POPULATION)
LOSSES = np.array([9.0, 4.0, 7.0])


def test_thresholds_are_log_ratios_and_absolute_losses() -> None:
    problem = pose_problem(REQUIREMENTS, LOSSES, DualConfig(cap=3.0, eta=0.5))
    assert problem.names == ("c", "sharp", "b")
    np.testing.assert_allclose(problem.shares, [0.1, 0.7, 0.2])
    np.testing.assert_allclose(problem.thresholds, [9 - math.log(3), 5, 7 - math.log(1.25)])
    assert problem.rules == ("mass", "ascent", "mass")
    assert (problem.cap, problem.eta) == (3.0, 0.5)


def test_a_probe_is_counted_from_its_calibration_and_training_losses_from_zero() -> None:
    assert pose_problem(REQUIREMENTS, LOSSES, DualConfig()).baseline.tolist() == [9, 4, 7]
    assert pose_problem(REQUIREMENTS, LOSSES, DualConfig(estimate="training")).baseline.tolist() == [0, 0, 0]


def test_one_rule_for_all_can_be_asked_for() -> None:
    assert pose_problem(REQUIREMENTS, LOSSES, DualConfig(rule="ascent")).rules == ("ascent",) * 3


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


def test_what_was_calibrated_is_written_in_full() -> None:
    problem = pose_problem(REQUIREMENTS, LOSSES, DualConfig())
    rows = describe(REQUIREMENTS, np.array([0.5, 10.0, -1.0]), problem, LOSSES)
    assert [row["constraint"] for row in rows] == ["c", "sharp", "b"]
    assert rows[0] == {
        "constraint": "c",
        "requirement": "class c: at least 0.3 of the generated samples",
        "share_in_data": 0.1,
        "window": 0.5,
        "warm_loss": 9.0,
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
