"""Class shares of generated samples, with their sampling error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from cdt.evaluate.thresholds import CONFIDENT

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def class_counts(probabilities: np.ndarray) -> np.ndarray:
    """How often each class is the most probable one: [N, K] -> [K] int64."""
    return np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])


def confident_share(probabilities: np.ndarray) -> float:
    """Share of the samples [N, K] whose most probable class has more than 0.9: how sure the judge is."""
    return float((probabilities.max(axis=1) > CONFIDENT).mean())


def wilson_interval(counts: ArrayLike, total: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals (low [K], high [K]) of the shares behind ``counts`` [K] of ``total`` > 0 draws.

    ``(c + z²/2 ± z sqrt(c (n - c) / n + z²/4)) / (n + z²)``: Wilson, J. Am. Stat. Assoc. 22 (1927) 209. Unlike the
    normal interval it stays within [0, 1] and is not empty at a count of 0.
    """
    c = np.asarray(counts, dtype=np.float64)
    middle = c + Z95**2 / 2
    half = Z95 * np.sqrt(c * (total - c) / total + Z95**2 / 4)
    # Rounding must not put an end beyond the share itself (they coincide at counts of 0 and n).
    low, high = (middle - half) / (total + Z95**2), (middle + half) / (total + Z95**2)
    return np.clip(low, 0, c / total), np.clip(high, c / total, 1)


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """``TV(p, q) = 1/2 Σ |p_c - q_c|`` of two distributions [K]: 0 (equal) to 1 (disjoint)."""
    return float(np.abs(np.subtract(p, q)).sum() / 2)


def expected_total_variation(target: ArrayLike, draws: int) -> float:
    """``E TV(X/n, target)`` where X counts n draws from ``target`` [K] itself: the floor set by sampling noise.

    Exact: each ``X_c`` is binomial, and ``E |X - n p| = 2 m (1 - p) P(X = m)`` with ``m = floor(n p) + 1`` (De Moivre;
    Diaconis and Zabell, Statistical Science 6 (1991) 284).
    """
    p = np.asarray(target, dtype=np.float64)
    m = np.floor(draws * p) + 1
    return float((2 * m * (1 - p) * binom.pmf(m, draws, p)).sum() / (2 * draws))
