"""The dual side of a run as each rank holds it: calibration, problem and state, and what is sent to the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from cdt.config import RunConfig, budgets_digest
from cdt.constraints import Calibration, Requirements
from cdt.dual import LINKS, DualProblem, DualState, Sums, finite_or_none, lagrangian
from cdt.errors import InputError
from cdt.measure.statistics import Statistics
from cdt.training import calibrate
from cdt.training.sums import constraint_sums


class DualSide:
    """Begins at calibration; ``problem`` is None before."""

    def __init__(self, config: RunConfig, requirements: Requirements, statistics: Statistics) -> None:
        self._config, self._requirements, self.statistics = config, requirements, statistics
        self.calibrations: list[Calibration] = []
        self.problem: DualProblem | None = None
        self.state = calibrate.first_state(requirements, config.dual)

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> list[dict[str, Any]]:
        """Thresholds from the warm model; what was measured, constraint by constraint."""
        self.calibrations = self.statistics.calibrate(network, windows)
        self.problem = self._pose()
        return calibrate.describe(self._requirements, self.calibrations, self.problem)

    def _pose(self) -> DualProblem:
        if not self._config.train.warm_steps:  # else the calibration is not the pretrained model's
            calibrate.check_prior(self._requirements, self.calibrations)
        return calibrate.pose_problem(self._requirements, self.calibrations, self._config.dual, self.statistics.room)

    def measure(self, network: nn.Module) -> Sums:
        """What the probe measures for the next dual step, under these weights."""
        assert self.problem is not None
        return self.statistics.measure(network, self.problem, self.state)

    @property
    def windows(self) -> np.ndarray:
        """[m]"""
        return np.array([calibration.window for calibration in self.calibrations])

    @property
    def ends(self) -> bool:
        """Whether dual training may end before its last step: all requirements satisfied for long enough."""
        enough = self._config.dual.stop_when_satisfied_for
        return enough is not None and self.problem is not None and self.state.satisfied_for >= enough

    def training_losses(self, cell_sums: np.ndarray) -> dict[str, float]:
        """The period's losses on training batches, nats: base draws over the full range, constraints windowed."""
        means = constraint_sums(self._requirements, cell_sums[:-1]).mean()
        named = zip(self._requirements.names, means.tolist(), strict=True)
        values = {f"training_loss/{name}": mean for name, mean in named if np.isfinite(mean)}
        base_total, _, base_count = cell_sums[-1]
        if base_count and self.problem is not None:
            base = base_total / base_count
            values["training_loss/base"] = base
            if np.isfinite(self.state.losses).all():
                values["dual/lagrangian"] = lagrangian(
                    base, self.state.losses, self.problem.thresholds, self.state.lambdas
                )
        return values

    def to_json(self) -> dict[str, Any] | None:
        """None before calibration."""
        if self.problem is None:
            return None
        return {
            "calibrations": calibrate.to_json(self.calibrations),
            "baseline": self.statistics.probed.baseline.tolist(),
            "thresholds": self.problem.thresholds.tolist(),
            "budgets": budgets_digest(self._config),
            "slack": finite_or_none(self.problem.slack(self.state.losses)),
            "state": self.state.to_json(),
        }

    def restore(self, tree: Mapping[str, Any]) -> list[str]:
        """Continues from ``to_json``; budgets and step sizes are those of the configuration now.

        Returns, in words, which thresholds that changed. Raises InputError if the calibration cannot be used.
        """
        self.calibrations = [Calibration(**row) for row in tree["calibrations"]]
        self.statistics.probed.resume(self.windows, np.asarray(tree["baseline"], dtype=np.float64))
        self.state = DualState.from_json(tree["state"])
        try:
            self.problem = self._pose()
        except ArithmeticError as error:  # a share of 0, say
            raise InputError(f"the checkpoint's calibration cannot be used: {error}") from error
        changed = [
            f"{name}: threshold {before:.3f} -> {now:.3f} {LINKS[link].unit}"
            for name, link, before, now in zip(
                self.problem.names, self.problem.links, tree["thresholds"], self.problem.thresholds, strict=True
            )
            if before != now
        ]
        if changed:
            self.state = replace(self.state, satisfied_for=0)
        return changed
