"""Budgets on the denoising loss itself: absolute, above a reference model's, or relative to it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from cdt.constraints.constraint import Calibration, Constraint


class MaxLoss(Constraint):
    """The denoising loss of the constraint's samples, in nats on the window, stays below c."""

    budget: ClassVar[str] = "max_loss"
    rule: ClassVar[str] = "ascent"

    max_loss: FiniteFloat = Field(gt=0, le=1e12)
    """c, nats."""

    def threshold(self, calibration: Calibration) -> float:
        return self.max_loss

    def describe(self) -> str:
        return f"{self.samples.describe()}: denoising loss at most {self.max_loss:g} nats"


class MaxKl(Constraint):
    """``KL(q_i || p) <= b``: the loss stays within b nats of its floor, which a reference model is taken to reach."""

    budget: ClassVar[str] = "max_kl"
    rule: ClassVar[str] = "ascent"

    max_kl: FiniteFloat = Field(gt=0, le=1e12)
    """b, nats."""
    reference: Path
    """A run whose model is as good at q_i as can be, best trained on q_i alone; its loss is the floor."""

    def threshold(self, calibration: Calibration) -> float:
        assert calibration.reference is not None
        return calibration.reference + self.max_kl

    def describe(self) -> str:
        return f"{self.samples.describe()}: within {self.max_kl:g} nats of {self.reference.name}"

    @property
    def budget_in_nats(self) -> float:
        return self.max_kl

    @property
    def compared_with(self) -> Path:
        return self.reference


class MaxExcess(Constraint):
    """``loss_i <= (1 + r)`` times a reference loss."""

    budget: ClassVar[str] = "max_excess"
    rule: ClassVar[str] = "ascent"

    max_excess: FiniteFloat = Field(gt=-1, le=1e6)
    """r, a fraction of the reference loss."""
    reference: Literal["warm", "base"] | Path = "warm"
    """Whose loss: the warm model's on the same samples (``warm``) or on all data (``base``), or another run's."""

    def threshold(self, calibration: Calibration) -> float:
        reference = calibration.loss if self.reference == "warm" else calibration.reference
        assert reference is not None
        return (1 + self.max_excess) * reference

    def describe(self) -> str:
        whose = {"warm": "the warm model's", "base": "that of all data"}
        of = whose.get(str(self.reference), f"{Path(self.reference).name}'s")
        return f"{self.samples.describe()}: denoising loss at most {1 + self.max_excess:.4g} times {of}"

    @property
    def compared_with(self) -> Path | Literal["warm", "base"]:
        return self.reference
