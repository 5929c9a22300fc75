"""The Lagrangian's minimiser is a mixture: what the multipliers say about which samples to draw, and with what weight.

arXiv 2408.15094, section 3: for fixed lambda the best model is ``p_lambda = (q + sum_i lambda_i q_i) / (1 + Lambda)``.
"""

from __future__ import annotations

import numpy as np


def mixture_probabilities(lambdas: np.ndarray) -> np.ndarray:
    """``[1, lambda_1, ..., lambda_m] / (1 + Lambda)``: multipliers [m] to the shares of base and streams [m + 1]."""
    weights = np.concatenate([[1.0], lambdas])
    return weights / weights.sum()


def sample_weights(
    lambdas: np.ndarray, shares: np.ndarray, cells: np.ndarray, members: np.ndarray, num_cells: int
) -> np.ndarray:
    """The importance weight of a base draw, by cell: ``(1 + sum_{i: x in i} lambda_i / pi_i) / (1 + Lambda)``, [K].

    A cell is a set of samples that belong to the same constraints; ``cells``, ``members`` [P] list the pairs
    (cell, constraint). ``reweight`` multiplies each base draw's loss by this, which leaves the gradient of the
    Lagrangian over (1 + Lambda) unchanged in expectation.
    """
    gain = np.bincount(cells, weights=(lambdas / shares)[members], minlength=num_cells)
    return (1 + gain) / (1 + lambdas.sum())


def lagrangian(loss: float, losses: np.ndarray, thresholds: np.ndarray, lambdas: np.ndarray) -> float:
    """``L = loss(q) + sum_i lambda_i (loss_i - c_i)``, nats."""
    return loss + float(lambdas @ (losses - thresholds))
