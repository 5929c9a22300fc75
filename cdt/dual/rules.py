"""Update rules: how one multiplier answers one violation.

A new rule is one function, its lines in ``RULES`` and ``DEFAULT_ETA``, and its name in ``DualConfig.rule``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(lambda [m], step eta * violation [m], share pi [m], lowest lambda [m]) to the next lambda [m], before caps."""


def projected_ascent(lambdas: np.ndarray, step: np.ndarray, shares: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """``lambda_i <- max(0, lambda_i + eta (loss_i - c_i))``. arXiv 2408.15094, algorithm 1."""
    return np.maximum(lowest, lambdas + step)


def mass_rule(lambdas: np.ndarray, step: np.ndarray, shares: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """``w_i <- max(pi_i, w_i exp(eta (loss_i - c_i)))`` on the class mass ``w_i = pi_i + lambda_i``.

    Multiplicative ascent: its step size is free of scale, whereas that of projected ascent must shrink with the
    share (the curvature of the dual is about 1 / pi_i). The exponent is limited to one e-fold a step, so that an
    outlier cannot throw the mixture.
    """
    return np.maximum(lowest, (shares + lambdas) * np.exp(np.clip(step, -1.0, 1.0)) - shares)


def fixed(lambdas: np.ndarray, step: np.ndarray, shares: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Multipliers stay where they start: with the closed form that is rebalancing, what dual ascent has to beat."""
    return lambdas


RULES: dict[str, Rule] = {"ascent": projected_ascent, "mass": mass_rule, "fixed": fixed}
DEFAULT_ETA = {"ascent": 0.01, "mass": 0.02, "fixed": 0.0}
"""Per nat of violation, for statistics that follow the model's weights."""


def proportional_term(violation: np.ndarray, smoothed: np.ndarray, nu: float) -> tuple[np.ndarray, np.ndarray]:
    """``xi <- nu xi + (1 - nu) v``; returns the change of xi, which kp weighs, and the new xi. Both [m].

    With it a rule is nuPI (Sohrabi et al., arXiv 2406.04558, algorithm 1, in its recursive form): where a violation
    shrinks, the multiplier stops growing before it overshoots. kp = 0 is the rule itself. ``smoothed`` is nan before
    the first measurement, which then changes nothing.
    """
    known = np.isfinite(smoothed)
    updated = np.where(known, nu * np.where(known, smoothed, 0.0) + (1 - nu) * violation, violation)
    return np.where(known, updated - np.where(known, smoothed, 0.0), 0.0), updated
