"""The Lagrangian's minimiser is a mixture: what the multipliers say about which samples to draw, and with what weight.

arXiv 2408.15094, section 3: for fixed lambda the best model is ``p_lambda = (q + sum_i lambda_i q_i) / (1 + Lambda)``.

An *estimator* of the Lagrangian's gradient over (1 + Lambda) is a way to draw from p_lambda: how often the base and
each constraint's stream are drawn, and what a draw weighs. All have the same expectation, and differ in variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Cells(Protocol):
    """What the estimators need to know of the data: m constraints cut it into K cells.

    A cell is a set of samples that belong to the same constraints.
    """

    @property
    def shares(self) -> np.ndarray:
        """pi_i: [m]"""
        ...

    @property
    def cell_shares(self) -> np.ndarray:
        """[K]"""
        ...

    @property
    def member_cells(self) -> np.ndarray:
        """With ``member_constraints`` [P] the pairs (cell, constraint that its samples belong to)."""
        ...

    @property
    def member_constraints(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Draws:
    """An estimator at fixed multipliers. The weights have mean 1 over the draws."""

    probabilities: np.ndarray
    """Of the base and of each constraint's stream: [m + 1]."""
    stream_weights: np.ndarray
    """Of a draw, by stream: [m + 1]."""
    base_weights: np.ndarray
    """Of a base draw besides, by its cell: [K]."""
    penalties: np.ndarray | None = None
    """The multipliers that draw nothing and are weights in the loss instead: [P]; None: there are none."""


def mixture_probabilities(lambdas: np.ndarray) -> np.ndarray:
    """``[1, lambda_1, ..., lambda_m] / (1 + Lambda)``: multipliers [m] >= 0 to shares of base and streams [m + 1]."""
    weights = np.concatenate([[1.0], lambdas])
    return weights / weights.sum()


def sample_weights(lambdas: np.ndarray, cells: Cells) -> np.ndarray:
    """``1 + sum_{i: x in i} lambda_i / pi_i``, by cell [K]: the density of (1 + Lambda) p_lambda with respect to q.

    Where negative multipliers of overlapping constraints would make it negative, it is 0. A constraint whose samples
    lie outside of q has no density there, and gives no weight.
    """
    inside = cells.shares > 0
    gains = np.divide(lambdas, cells.shares, out=np.zeros(len(lambdas)), where=inside)[cells.member_constraints]
    gain = np.bincount(cells.member_cells, weights=gains, minlength=len(cells.cell_shares))
    return np.maximum(1 + gain, 0.0)


def resample(lambdas: np.ndarray, cells: Cells) -> Draws:
    """Draw the stream from the mixture. A negative multiplier cannot be drawn: it takes weight from base draws."""
    raised = np.maximum(lambdas, 0.0)
    base = sample_weights(np.minimum(lambdas, 0.0), cells)
    return _normalised(mixture_probabilities(raised), np.ones(len(lambdas) + 1), base, cells)


def reweight(lambdas: np.ndarray, cells: Cells) -> Draws:
    """Draw from the base alone; the weights of rare classes, and with them the variance, are large."""
    m = len(lambdas)
    probabilities = np.concatenate([[1.0], np.zeros(m)])
    return _normalised(probabilities, np.ones(m + 1), sample_weights(lambdas, cells), cells)


def separate(lambdas: np.ndarray, cells: Cells) -> Draws:
    """Equally many draws of the base and of every stream that counts, weighted by 1 and lambda_i.

    As the paper's pseudo-code reads: one batch from q and one from each q_i. At its price, a batch m + 1 times as
    large, each part is as large as the batch was.
    """
    raised = np.concatenate([[1.0], np.maximum(lambdas, 0.0)])
    active = raised > 0
    base = sample_weights(np.minimum(lambdas, 0.0), cells)
    return _normalised(active / active.sum(), raised, base, cells)


ESTIMATORS: dict[str, Callable[[np.ndarray, Cells], Draws]] = {
    "resample": resample,
    "reweight": reweight,
    "separate": separate,
}


def _normalised(probabilities: np.ndarray, stream_weights: np.ndarray, base_weights: np.ndarray, cells: Cells) -> Draws:
    base_mean = float(cells.cell_shares @ base_weights)
    mean = probabilities[0] * stream_weights[0] * base_mean + float(probabilities[1:] @ stream_weights[1:])
    return Draws(probabilities, stream_weights / mean, base_weights)


def lagrangian(loss: float, losses: np.ndarray, thresholds: np.ndarray, lambdas: np.ndarray) -> float:
    """``L = loss(q) + sum_i lambda_i (loss_i - c_i)``, nats."""
    return loss + float(lambdas @ (losses - thresholds))
