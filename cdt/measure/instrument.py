"""The interface of instruments, and what they measure with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from torch import nn

from cdt.constraints import Requirements, Statistic
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.read.reader import Images
from cdt.diffusion.loss import Network
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import Sampler
from cdt.dual import Sums
from cdt.engine.ranks import Ranks
from cdt.measure.config import ProbeConfig


@dataclass(frozen=True)
class Setup:
    """The constraints of a run, and what they are measured with."""

    requirements: Requirements
    index: Index
    """The index of the data."""
    reader: Images
    """Reads images of all rows, replayed ones too."""
    process: Process
    ranks: Ranks
    data: DataConfig
    probe: ProbeConfig
    sampler: Sampler
    seed: int
    chunk: int
    """Draws in one forward of this rank."""
    init: Path | None = None
    """The pretrained model, for constraints that are relative to it."""
    teacher: Callable[[], Network] | None = None
    """Builds its network, in fp32."""
    fresh: Index | None = None
    """Samples of the pretrained model that are not trained on."""


@dataclass(frozen=True)
class Warm:
    """What an instrument measured of the warm model at calibration, by the positions of its own constraints."""

    losses: dict[int, float] = field(default_factory=dict)
    """loss_i, in the units of the link; one for each constraint that the instrument measures."""
    shares: dict[int, float] = field(default_factory=dict)
    """rho_i, measured on samples of the warm model."""
    references: dict[int, float] = field(default_factory=dict)
    """loss_i of the model that the budget is relative to."""


class Instrument(Protocol):
    """Measures the constraints that have its kinds of statistics. All calls are collectives.

    Constraints are named by their positions 0 to m - 1.
    """

    measures: ClassVar[tuple[type[Statistic], ...]]
    """The kinds of statistics; each kind belongs to one instrument."""

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """For the constraints of a run."""
        ...

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> Warm:
        """Measures the warm model, loss statistics on log-SNR windows [m]."""
        ...

    def measure(self, network: nn.Module, chosen: np.ndarray, period: int) -> Sums:
        """Sums for the dual step of a period, [m] each, 0 for the constraints of other instruments.

        They are what the constraint's link takes. With ``identity`` these are differences to the loss that
        ``calibrate`` measured.

        ``chosen``: ascending positions of the constraints that are asked about. An instrument may measure more of its
        own where that costs nothing.
        """
        ...
