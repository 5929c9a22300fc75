"""Floors and equalities on shares, for a model that follows the multipliers exactly."""

from __future__ import annotations

import numpy as np

from cdt.dual import ALARMS, DualProblem, DualState, Sums


def shares_problem(
    shares: np.ndarray,
    thresholds: np.ndarray,
    rules: str | list[str] = "mass",
    eta: float = 1.0,
    *,
    equal: np.ndarray | bool = False,
    baseline: np.ndarray | float = 0.0,
    cap: float = 1e6,
) -> DualProblem:
    m = len(shares)
    return DualProblem(
        names=tuple(f"class {i}" for i in range(m)),
        shares=shares,
        baseline=np.broadcast_to(np.float64(baseline), m),
        thresholds=thresholds,
        rules=np.broadcast_to(np.array(rules, "U8"), m),
        etas=np.full(m, eta),
        equal=np.broadcast_to(equal, m),
        links=np.full(m, "identity"),
        actuators=np.full(m, "draw"),
        kp=np.zeros(m),
        cap=cap,
    )


def begin(lambdas: np.ndarray) -> DualState:
    return DualState.first(lambdas, alarms=len(ALARMS))


def told(losses: np.ndarray) -> Sums:
    """Losses known exactly."""
    return Sums(8 * losses, 8 * losses**2, np.full(len(losses), 8.0))
