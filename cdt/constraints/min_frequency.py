"""``min_frequency: F``: at least a share F of what the model generates."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from cdt.constraints.constraint import Calibration, Constraint


class MinFrequency(Constraint):
    """A floor on the share of generated samples: the budget is ``KL(q_i || p) <= log(1 / F)``."""

    budget: ClassVar[str] = "min_frequency"
    rule: ClassVar[str] = "mass"

    min_frequency: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""
    window: Literal["auto"] | FiniteFloat | None = "auto"
    """Upper end of the log-SNR window; class mass is decided at low log-SNR, so the full range is a poor measure."""

    def threshold(self, calibration: Calibration) -> float:
        """``c_i = loss_i(warm) - log(F / rho_i)``: with a share F instead of rho_i, the loss is lower by this log.

        The same weights (EMA), draws and window must serve the statistic. A model that already generates a larger
        share than F may lose it down to F: the threshold then lies above the warm loss.
        """
        return calibration.loss - math.log(self.min_frequency / calibration.share)

    def describe(self) -> str:
        return f"{self.population()}: at least {self.min_frequency:.3g} of the generated samples"

    @property
    def budget_in_nats(self) -> float:
        return math.log(1 / self.min_frequency)
