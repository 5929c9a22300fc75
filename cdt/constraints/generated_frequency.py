"""``generated_frequency: {min: F, classifier: FILE}``: a floor on the share that a classifier sees in samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cdt.constraints.constraint import Calibration, Constraint
from cdt.constraints.samples import Labelled
from cdt.constraints.statistic import GeneratedShare
from cdt.schema import Config


class ShareBudget(Config):
    min: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""
    classifier: Path
    """Who judges the samples: a file of ``cdt classifier``, TorchScript, or a directory of one of these."""


class GeneratedFrequency(Constraint):
    """``E_{x ~ p}[p(i | x)] >= F`` on samples of the EMA model, drawn as they will be drawn when it is used.

    The loss is ``-log`` of the share, the KL of classes with disjoint supports; the threshold is ``log(1 / F)``. The
    loop closes around all that a denoising loss assumes: overlap, the model's own bias, fitted detail.
    """

    budget: ClassVar[str] = "generated_frequency"
    rule: ClassVar[str] = "mass"
    kp: ClassVar[float] = 1.0
    link: ClassVar[str] = "negative_log"

    generated_frequency: ShareBudget

    def threshold(self, calibration: Calibration) -> float:
        return math.log(1 / self.share)

    def describe(self) -> str:
        return (
            f"{self.samples.describe()}: at least {self.share:.3g} of the generated samples, as a classifier sees them"
        )

    @property
    def budget_path(self) -> str:
        return f"{self.budget}.min"

    @property
    def eta(self) -> float:
        return 0.2

    @property
    def share(self) -> float:
        return self.generated_frequency.min

    @property
    def statistic(self) -> GeneratedShare:
        return GeneratedShare(self.generated_frequency.classifier, Labelled(self.classes, self.where))

    @property
    def warm_share(self) -> GeneratedShare:
        return self.statistic
