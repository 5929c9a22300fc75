"""The dual problem, which stays fixed in a run, and the dual state, which moves."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cdt.dual.actuators import ACTUATORS, lowest_multipliers
from cdt.dual.links import LINKS


@dataclass(frozen=True)
class DualProblem:
    """What stays fixed during dual training. Arrays [m], float64 unless said otherwise."""

    names: tuple[str, ...]
    shares: np.ndarray
    """pi_i, in the data; 0 where the multiplier does not draw samples."""
    baseline: np.ndarray
    """What the sums of a difference are relative to: see ``links``."""
    links: np.ndarray
    """How sums become losses: a key of ``LINKS`` each; strings."""
    thresholds: np.ndarray
    """c_i, in the units of the link: nats unless it says otherwise."""
    actuators: np.ndarray
    """How the multiplier acts: a key of ``ACTUATORS`` each; strings."""
    rules: np.ndarray
    """A key of ``RULES`` each; strings."""
    etas: np.ndarray
    equal: np.ndarray
    """bool: ``loss_i = c_i`` is asked, not ``loss_i <= c_i``."""
    kp: np.ndarray
    """Weight of the change of the violation."""
    cap: float
    nu: float = 0.0
    gamma: float = 0.0
    every_period: bool = True
    """Whether each constraint is measured each period: then one that was not is news."""

    @property
    def draws(self) -> np.ndarray:
        """Which multipliers draw samples, and so count in Lambda: bool [m]."""
        return np.isin(self.actuators, [name for name, each in ACTUATORS.items() if each.draws])

    @property
    def undrawn(self) -> list[str]:
        """The names of the others."""
        return [self.names[i] for i in np.flatnonzero(~self.draws)]

    @property
    def lowest(self) -> np.ndarray:
        """The least lambda_i [m]."""
        return lowest_multipliers(self.shares, self.equal & self.draws)

    def slack(self, losses: np.ndarray) -> np.ndarray:
        """``c_i - loss_i`` [m], for an equality ``tolerance - |c_i - loss_i|``: negative where violated."""
        gap = self.thresholds - losses
        for name in np.unique(self.links[self.equal]).tolist():
            chosen = self.equal & (self.links == name)
            gap[chosen] = LINKS[name].tolerance - np.abs(gap[chosen])
        return gap


@dataclass(frozen=True)
class DualState:
    """The dual side's whole state; it travels in the checkpoint. Arrays [m], float64 unless said otherwise."""

    period: int
    """Dual steps taken."""
    lambdas: np.ndarray
    average: np.ndarray
    """Of lambda over the periods, late ones weighing more."""
    losses: np.ndarray
    """loss_i when last measured, nats; nan where it never was."""
    errors: np.ndarray
    """Standard errors of ``losses``."""
    counts: np.ndarray
    """Observations in the last period."""
    seen: np.ndarray
    """The period in which it was last measured; 0: never."""
    smoothed: np.ndarray
    """xi_i of nuPI"""
    satisfied_for: int
    """Periods in a row, up to now, in which every loss was within its threshold."""
    violated_since: np.ndarray
    """The period in which the violation that lasts began; 0: it is satisfied."""
    lambda_then: np.ndarray
    loss_then: np.ndarray
    """lambda_i and loss_i in that period."""
    told: np.ndarray
    """Which alarms were raised, once each: bool [alarms, m]."""

    @classmethod
    def first(cls, lambdas: np.ndarray, alarms: int) -> DualState:
        """Before the first dual step."""
        m = len(lambdas)
        nan, zero = np.full(m, np.nan), np.zeros(m)
        told = np.zeros((alarms, m), dtype=bool)
        return cls(0, lambdas, lambdas, nan, nan, zero, zero, nan, 0, zero, nan, nan, told)

    def to_json(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DualState:
        def value(name: str) -> Any:
            if name in ("period", "satisfied_for"):
                return tree[name]
            return np.asarray(tree[name], dtype=bool if name == "told" else np.float64)  # null is nan

        return cls(**{field.name: value(field.name) for field in fields(cls)})


def _plain(values: Any) -> Any:
    """JSON has neither nan nor infinities: an estimate that does not exist is null."""
    if not isinstance(values, np.ndarray):
        return values
    return values.tolist() if values.dtype == bool else finite_or_none(values)


def finite_or_none(values: np.ndarray) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), np.isfinite(values), strict=True)]
