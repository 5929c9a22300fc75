"""``min_frequency: F`` and ``frequency: F``: at least, or exactly, a share F of what the model generates."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from cdt.constraints.constraint import Calibration, Constraint
from cdt.constraints.samples import Labelled
from cdt.constraints.statistic import GeneratedShare
from cdt.schema import LogSnr


class LogRatio(Constraint):
    """A budget on the share of generated samples that is measured by the denoising loss."""

    rule: ClassVar[str] = "mass"

    window: Literal["auto"] | LogSnr | None = "auto"
    """Upper end of the log-SNR window; class mass is decided at low log-SNR, so the full range is a poor measure."""
    classifier: Path | None = None
    """Measures the warm model's own share (see ``cdt classifier``); ``null``: the share in the data is used instead."""

    @property
    @abstractmethod
    def share(self) -> float:
        """F, a share of all generated samples."""

    def threshold(self, calibration: Calibration) -> float:
        """``c_i = loss_i(warm) - log(F / rho_i)``: with a share F instead of rho_i, the loss is lower by this log.

        The same weights (EMA), draws and window must serve the statistic. A model that already generates a larger
        share than F may lose it down to F: the threshold then lies above the warm loss.
        """
        return calibration.loss - math.log(self.share / calibration.share)

    @property
    def warm_share(self) -> GeneratedShare | None:
        return None if self.classifier is None else GeneratedShare(self.classifier, Labelled(self.classes, self.where))


class MinFrequency(LogRatio):
    """A floor on the share of generated samples: the budget is ``KL(q_i || p) <= log(1 / F)``."""

    budget: ClassVar[str] = "min_frequency"

    min_frequency: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""

    def describe(self) -> str:
        return f"{self.samples.describe()}: at least {self.share:.3g} of the generated samples"

    @property
    def share(self) -> float:
        return self.min_frequency


class Frequency(LogRatio):
    """An exact share of the generated samples; its multiplier may be negative, and then takes samples away."""

    budget: ClassVar[str] = "frequency"
    equal: ClassVar[bool] = True

    frequency: float = Field(gt=0, lt=1)
    """F, a share of all generated samples."""

    def describe(self) -> str:
        return f"{self.samples.describe()}: {self.share:.3g} of the generated samples"

    @property
    def share(self) -> float:
        return self.frequency
