"""``max_loss: c``: an absolute threshold, for those who know."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, FiniteFloat

from cdt.constraints.constraint import Calibration, Constraint


class MaxLoss(Constraint):
    """The denoising loss of the constraint's samples, in nats on the window, stays below c."""

    budget: ClassVar[str] = "max_loss"
    rule: ClassVar[str] = "ascent"

    max_loss: FiniteFloat = Field(gt=0)
    """c, nats."""

    def threshold(self, calibration: Calibration) -> float:
        return self.max_loss

    def describe(self) -> str:
        return f"{self.population()}: denoising loss at most {self.max_loss:g} nats"

    @property
    def budget_in_nats(self) -> None:
        return None
