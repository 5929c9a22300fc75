"""``prior: {max_kl: b}``: the model stays within b nats of the pretrained one that it started from."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat, model_validator

from cdt.constraints.constraint import Calibration, Constraint
from cdt.constraints.samples import Replayed
from cdt.constraints.statistic import DenoisingLoss, TeacherDistance
from cdt.schema import Config, LogSnr

LARGEST = 700.0
"""Nats, beyond which exp(b) is no float64; all that is computed from a budget is 0 long before."""


class PriorBudget(Config):
    max_kl: FiniteFloat = Field(gt=0, le=1e12)
    """b, nats."""
    statistic: Literal["distance", "loss"] = "distance"
    """What measures the divergence: the distance to the teacher's prediction, or how much larger the denoising loss is
    than the teacher's own."""


class Prior(Constraint):
    """``KL(q_1 || p) <= b`` with q_1 what the pretrained model generates, on its replayed samples.

    distance   ``D (l - l_min) / 2 * mean (eps_pre - eps_theta)^2``: the floor is 0
    loss       ``D (l - l_min) / 2 * mean (eps - eps_theta)^2``: the floor is the pretrained model's own loss

    Where the pretrained network is the exact conditional mean, both are the divergence plus their floor.
    """

    budget: ClassVar[str] = "prior"
    rule: ClassVar[str] = "ascent"

    prior: PriorBudget
    window: Literal["auto"] | LogSnr | None = "auto"
    """Upper end of the log-SNR window; ``auto``: where the pretrained model's samples and the new data separate."""

    @model_validator(mode="after")
    def _selects_something(self) -> Prior:
        if self.classes or self.where:
            raise ValueError("prior speaks of what the pretrained model generates: drop class and where")
        return self

    def threshold(self, calibration: Calibration) -> float:
        if self.compared_with is None:
            return self.prior.max_kl
        assert calibration.reference is not None
        return calibration.reference + self.prior.max_kl

    def describe(self) -> str:
        return f"{self.samples.describe()}: within {self.prior.max_kl:g} nats"

    @property
    def budget_path(self) -> str:
        return f"{self.budget}.max_kl"

    @property
    def budget_in_nats(self) -> float:
        return self.prior.max_kl

    @property
    def eta(self) -> float:
        """A tenth of Newton's step where ``log(1 + 1 / lambda) = b`` falls by ``1 / (lambda (1 + lambda))``."""
        lambda_ = 1 / math.expm1(min(self.prior.max_kl, LARGEST))
        return 0.1 * lambda_ * (1 + lambda_)

    @property
    def samples(self) -> Replayed:
        return Replayed()

    @property
    def statistic(self) -> DenoisingLoss | TeacherDistance:
        return TeacherDistance() if self.prior.statistic == "distance" else DenoisingLoss()

    @property
    def compared_with(self) -> Literal["init"] | None:
        """The distance has a floor of 0; the loss has that of the pretrained model."""
        return None if self.prior.statistic == "distance" else "init"
