"""Every constraint's statistic under given weights: a table of instruments, whose sums are added."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from cdt.constraints import Calibration, Constraint
from cdt.dual import DualProblem, DualState, Sums, measured_next
from cdt.measure.generated import GeneratedShares
from cdt.measure.instrument import Instrument, Setup
from cdt.measure.probed import ProbedLosses

INSTRUMENTS: tuple[type[Instrument], ...] = (ProbedLosses, GeneratedShares)
"""A new one is one file and its name here."""


class Statistics:
    """Measures what the dual step uses. Constraints are named by their positions 0 to m - 1."""

    def __init__(self, setup: Setup) -> None:
        self._requirements = setup.requirements
        self._instruments = [kind.of(setup) for kind in INSTRUMENTS]
        check_measured(setup.requirements.constraints)
        self.probed = next(each for each in self._instruments if isinstance(each, ProbedLosses))
        self.room = max(1, setup.probe.limit // setup.probe.draws)
        """How many constraints one probe measures."""

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> list[Calibration]:
        """Measures the warm model and the references, on log-SNR windows [m]. A collective."""
        losses, shares, references = {}, {}, {}
        for instrument in self._instruments:
            warm = instrument.calibrate(network, windows)
            losses |= warm.losses
            shares |= warm.shares
            references |= warm.references
        return [
            Calibration(
                loss=losses[i],
                share=shares.get(i, in_data),
                window=window,
                reference=references.get(i),
                share_measured=i in shares,
            )
            for i, (in_data, window) in enumerate(
                zip(self._requirements.shares.tolist(), windows.tolist(), strict=True)
            )
        ]

    def measure(self, network: nn.Module, problem: DualProblem, state: DualState) -> Sums:
        """Sums for the next dual step, [m] each. A collective."""
        chosen = measured_next(problem, state, self.room)
        sums = Sums.none(len(problem.names))
        for instrument in self._instruments:
            sums += instrument.measure(network, chosen, state.period + 1)
        return sums


def check_measured(constraints: Mapping[str, Constraint]) -> None:
    """Raises TypeError for a constraint whose statistic no instrument measures."""
    kinds = tuple(kind for instrument in INSTRUMENTS for kind in instrument.measures)
    for name, constraint in constraints.items():
        if not isinstance(constraint.statistic, kinds):
            raise TypeError(
                f"constraints.{name}: no instrument measures {type(constraint.statistic).__name__}; "
                "name one in cdt.measure.statistics.INSTRUMENTS"
            )
