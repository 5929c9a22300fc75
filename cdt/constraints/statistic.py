"""What is measured of a constraint, as data: the instruments of ``cdt.measure`` measure it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cdt.constraints.samples import Labelled


class Statistic:
    """A kind of measurement. A new one is a class here or in its constraint's file, and its instrument."""

    name: ClassVar[str]
    of_generated: ClassVar[bool] = False
    """Whether it is measured on fresh samples of the model. Then it has no window of log-SNR, batches do not show it,
    and it follows the multipliers only as fast as the averaged weights do."""


@dataclass(frozen=True)
class DenoisingLoss(Statistic):
    """``D (l - l_min) / 2 * mean (eps - eps_theta)^2`` on the constraint's samples, nats."""

    name: ClassVar[str] = "loss"


@dataclass(frozen=True)
class TeacherDistance(Statistic):
    """``D (l - l_min) / 2 * mean (eps_pre - eps_theta)^2`` on the constraint's samples, nats."""

    name: ClassVar[str] = "distance"


@dataclass(frozen=True)
class GeneratedShare(Statistic):
    """``E_{x ~ p}[p(i | x)]``: the mean posterior of some labels, as a judge sees samples of the model."""

    judge: Path
    """A file of ``cdt classifier``, TorchScript, or a directory of one of these."""
    samples: Labelled
    """What is counted."""

    name: ClassVar[str] = "share"
    of_generated: ClassVar[bool] = True
