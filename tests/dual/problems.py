"""Dual problems, states and sums, as small as a test needs them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cdt.dual import ALARMS, DEFAULT_ETA, RULES, DualProblem, DualState, Sums, dual_step

MOVING = sorted(RULES.keys() - {"fixed"})
"""The rules that answer."""


def pose(m: int, **fields: Any) -> DualProblem:
    """m constraints ``loss_i <= 0`` of classes with a share of 0.1, under projected ascent, all but without a cap.

    For arrays one value may stand for all constraints. Step sizes are the rules' own.
    """
    names = fields.pop("names", tuple(f"c{i}" for i in range(m)))
    rules = np.broadcast_to(np.array(fields.pop("rules", "ascent"), dtype="U8"), m)
    defaults: dict[str, Any] = {
        "shares": 0.1,
        "baseline": 0.0,
        "thresholds": 0.0,
        "etas": [DEFAULT_ETA[rule] for rule in rules.tolist()],
        "equal": False,
        "links": "identity",
        "actuators": "draw",
        "kp": 0.0,
    }
    arrays = {name: fields.pop(name, value) for name, value in defaults.items()}
    types = dict.fromkeys(arrays, np.float64) | {"equal": bool, "links": "U16", "actuators": "U8"}
    columns = {name: np.broadcast_to(np.array(value, types[name]), m) for name, value in arrays.items()}
    return DualProblem(names=names, rules=rules, **columns, **{"cap": 1e6, **fields})


def begin(*lambdas: float) -> DualState:
    """Before the first dual step."""
    return DualState.first(np.array(lambdas, dtype=np.float64), alarms=len(ALARMS))


def sums(*means: float, count: int = 8, deviation: float = 1.0) -> Sums:
    """As if each constraint had ``count`` observations with these means and (up to n / (n - 1)) this deviation."""
    n, mean = np.full(len(means), float(count)), np.array(means, dtype=np.float64)
    return Sums(n * mean, n * (mean**2 + deviation**2), n)


def steps(problem: DualProblem, state: DualState, *means: float, count: int = 8, deviation: float = 1.0) -> DualState:
    """One dual step per mean, each of them that of all constraints."""
    for mean in means:
        told = sums(*[mean] * len(problem.names), count=count, deviation=deviation)
        state = dual_step(problem, state, told)
    return state


def through_json(tree: Any) -> Any:
    """Written and read as a checkpoint does it: strictly, without nan and infinities."""
    return json.loads(json.dumps(tree, allow_nan=False))
