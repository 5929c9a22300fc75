"""Update rules: how one multiplier answers one violation.

A new rule is one function, its lines in ``RULES`` and ``DEFAULT_ETA``, and its name in ``DualConfig.rule``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(lambda [m], violation [m] in nats, share pi [m], eta) to the next lambda [m], before caps."""


def projected_ascent(lambdas: np.ndarray, violation: np.ndarray, shares: np.ndarray, eta: float) -> np.ndarray:
    """``lambda_i <- max(0, lambda_i + eta (loss_i - c_i))``. arXiv 2408.15094, algorithm 1."""
    return np.maximum(0.0, lambdas + eta * violation)


def mass_rule(lambdas: np.ndarray, violation: np.ndarray, shares: np.ndarray, eta: float) -> np.ndarray:
    """``w_i <- max(pi_i, w_i exp(eta (loss_i - c_i)))`` on the class mass ``w_i = pi_i + lambda_i``.

    Multiplicative ascent: its step size is free of scale, whereas that of projected ascent must shrink with the
    share (the curvature of the dual is about 1 / pi_i). The exponent is limited to one e-fold a step, so that an
    outlier cannot throw the mixture.
    """
    return np.maximum(shares, (shares + lambdas) * np.exp(np.clip(eta * violation, -1.0, 1.0))) - shares


RULES: dict[str, Rule] = {"ascent": projected_ascent, "mass": mass_rule}
DEFAULT_ETA = {"ascent": 0.01, "mass": 0.02}
