"""What the dual side is about: its settings, what stays fixed in a run, its state, and the sums that it is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

TOLERANCE = 0.1
"""nats by which a loss may miss an equality: a share within a tenth of what is asked."""


@dataclass(frozen=True)
class Sums:
    """Additive statistics of one period: reduced over ranks by addition, divided last. Each [m], float64."""

    total: np.ndarray
    squares: np.ndarray
    count: np.ndarray

    def mean(self) -> np.ndarray:
        """[m]; nan where nothing was counted."""
        return np.divide(self.total, self.count, out=np.full(len(self.total), np.nan), where=self.count > 0)

    def share(self) -> np.ndarray:
        """The mean of counts of samples, hard or soft; of none among n it is taken as 1 / 2n: [m]."""
        return np.maximum(self.mean(), 0.5 / np.maximum(self.count, 1))

    def share_error(self) -> np.ndarray:
        """The standard error of ``share``: [m]; where less was seen than 1 / 2n, that of a count at 1 / 2n."""
        n = np.maximum(self.count, 1)
        least = 0.5 / n
        return np.where(self.mean() < least, np.sqrt(least * (1 - least) / n), self.standard_error())

    def standard_error(self) -> np.ndarray:
        """Of the mean of independent observations: [m]; nan below two."""
        n = np.maximum(self.count, 2)
        with np.errstate(invalid="ignore"):  # inf - inf, where a loss ran away
            variance = np.maximum(self.squares / n - (self.total / n) ** 2, 0.0) * n / (n - 1)
        return np.where(self.count > 1, np.sqrt(variance / n), np.nan)


@dataclass(frozen=True)
class DualProblem:
    """What stays fixed during dual training. Arrays [m], float64 unless said otherwise."""

    names: tuple[str, ...]
    shares: np.ndarray
    """pi_i, in the data"""
    baseline: np.ndarray
    """What the sums of a loss statistic are differences to: loss_i = baseline_i + mean_i, nats."""
    thresholds: np.ndarray
    """c_i, nats"""
    rules: np.ndarray
    """A key of ``RULES`` each; strings."""
    etas: np.ndarray
    equal: np.ndarray
    """bool: ``loss_i = c_i`` is asked, not ``loss_i <= c_i``."""
    generated: np.ndarray
    """bool: the statistic is the share of generated samples, not a denoising loss."""
    kp: np.ndarray
    """Weight of the change of the violation."""
    cap: float
    nu: float = 0.0
    gamma: float = 0.0
    every_period: bool = True
    """Whether each constraint is measured each period: then one that was not is news."""

    @property
    def lowest(self) -> np.ndarray:
        """The least lambda_i [m]: 0, or for an equality what leaves its samples a tenth of their weight."""
        return np.where(self.equal, -0.9 * self.shares, 0.0)

    def slack(self, losses: np.ndarray) -> np.ndarray:
        """``c_i - loss_i`` in nats [m], for an equality ``TOLERANCE - |c_i - loss_i|``: negative where violated."""
        gap = self.thresholds - losses
        return np.where(self.equal, TOLERANCE - np.abs(gap), gap)


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
