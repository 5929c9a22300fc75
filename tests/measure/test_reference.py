"""Budgets relative to another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cdt.config import RunConfig
from cdt.runs.start import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_budgets_relative_to_another_run(home: Path, other: Callable[..., RunConfig]) -> None:
    constraints = {
        "same": {"class": 4, "max_kl": 0.5, "reference": str(home / "whole"), "window": 0},
        "all": {"class": 5, "max_excess": 0.1, "reference": "base"},
        "warm": {"class": 5, "max_excess": 0.1},
    }
    config = other(run={"fork": str(home / "whole")}, constraints=constraints, train={"dual_steps": 2})
    same, on_all, warm = train(config).calibration()
    # The reference went on after the fork, so it is near the warm model and not it.
    assert same["reference_loss"] != same["warm_loss"]
    assert same["reference_loss"] == pytest.approx(same["warm_loss"], rel=0.2)
    assert same["threshold"] == pytest.approx(same["reference_loss"] + 0.5)
    assert on_all["threshold"] == pytest.approx(1.1 * on_all["reference_loss"])
    assert warm["threshold"] == pytest.approx(1.1 * warm["warm_loss"])
