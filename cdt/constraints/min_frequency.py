"""``min_frequency: F`` and ``frequency: F``: at least, or exactly, a share F of what the model generates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from cdt.constraints.constraint import Calibration, Constraint


def log_ratio_threshold(calibration: Calibration, share: float) -> float:
    """``c_i = loss_i(warm) - log(F / rho_i)``: with a share F instead of rho_i, the loss is lower by this log.

    The same weights (EMA), draws and window must serve the statistic. A model that already generates a larger share
    than F may lose it down to F: the threshold then lies above the warm loss.
    """
    return calibration.loss - math.log(share / calibration.share)


class MinFrequency(Constraint):
    """A floor on the share of generated samples: the budget is ``KL(q_i || p) <= log(1 / F)``."""

    budget: ClassVar[str] = "min_frequency"
    rule: ClassVar[str] = "mass"

    min_frequency: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""
    window: Literal["auto"] | FiniteFloat | None = "auto"
    """Upper end of the log-SNR window; class mass is decided at low log-SNR, so the full range is a poor measure."""
    classifier: Path | None = None
    """Measures the warm model's own share (see ``cdt classifier``); ``null``: the share in the data stands for it."""

    def threshold(self, calibration: Calibration) -> float:
        return log_ratio_threshold(calibration, self.min_frequency)

    def describe(self) -> str:
        return f"{self.population()}: at least {self.min_frequency:.3g} of the generated samples"

    @property
    def budget_in_nats(self) -> float:
        return math.log(1 / self.min_frequency)

    @property
    def share(self) -> float:
        return self.min_frequency

    @property
    def judge(self) -> Path | None:
        return self.classifier


class Frequency(Constraint):
    """An exact share of the generated samples; its multiplier may be negative, and then takes samples away."""

    budget: ClassVar[str] = "frequency"
    rule: ClassVar[str] = "mass"
    equal: ClassVar[bool] = True

    frequency: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""
    window: Literal["auto"] | FiniteFloat | None = "auto"
    """As for ``min_frequency``."""
    classifier: Path | None = None
    """As for ``min_frequency``."""

    def threshold(self, calibration: Calibration) -> float:
        return log_ratio_threshold(calibration, self.frequency)

    def describe(self) -> str:
        return f"{self.population()}: {self.frequency:.3g} of the generated samples"

    @property
    def budget_in_nats(self) -> float:
        return math.log(1 / self.frequency)

    @property
    def share(self) -> float:
        return self.frequency

    @property
    def judge(self) -> Path | None:
        return self.classifier
