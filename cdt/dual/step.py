"""The dual step: the one place where multipliers change. A pure function of states, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from cdt.dual.rules import DEFAULT_ETA, RULES
from cdt.schema import Config


class DualConfig(Config):
    period: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """How often the multipliers move: every epoch (``data.epoch_samples``), or every so many steps."""
    rule: Literal["auto", "mass", "ascent"] = "auto"
    """``auto``: the mass rule for floors on shares, projected ascent for budgets in nats."""
    eta: FiniteFloat | None = Field(default=None, gt=0)
    """Step size, per nat of violation; default 0.02 for the mass rule, 0.01 for projected ascent."""
    start: Literal["closed_form", "zero"] = "closed_form"
    """Where floors on shares begin: at the solution for disjoint classes and an exact model, or at 0."""
    cap: FiniteFloat = Field(default=10.0, gt=0)
    """No multiplier grows beyond this; one that stays here is reported."""
    estimate: Literal["probe", "training"] = "probe"
    """What the step believes: fixed draws under the EMA weights, or the losses of the period's training batches."""
    probe_draws: int = Field(default=256, ge=8)
    """Draws per constraint and probe."""


@dataclass(frozen=True)
class Sums:
    """Additive statistics of one period: reduced over ranks by addition, divided last. Each [m], float64."""

    total: np.ndarray
    squares: np.ndarray
    count: np.ndarray

    def mean(self) -> np.ndarray:
        """[m]; nan where nothing was counted."""
        return np.divide(self.total, self.count, out=np.full(len(self.total), np.nan), where=self.count > 0)

    def standard_error(self) -> np.ndarray:
        """Of the mean, draws taken as independent: [m]; nan below two draws."""
        n = np.maximum(self.count, 2)
        with np.errstate(invalid="ignore"):  # inf - inf, where a loss ran away
            variance = np.maximum(self.squares / n - (self.total / n) ** 2, 0.0) * n / (n - 1)
        return np.where(self.count > 1, np.sqrt(variance / n), np.nan)


@dataclass(frozen=True)
class DualProblem:
    """What stays fixed during dual training. Arrays [m], float64."""

    names: tuple[str, ...]
    shares: np.ndarray
    """pi_i, in the data"""
    baseline: np.ndarray
    """What ``Sums`` are differences to: loss_i = baseline_i + mean_i, nats."""
    thresholds: np.ndarray
    """c_i, nats"""
    rules: tuple[str, ...]
    """Per constraint, a key of ``RULES``."""
    cap: float
    eta: float | None = None

    def to_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("shares", "baseline", "thresholds")}
        return {"names": list(self.names), **arrays, "rules": list(self.rules), "cap": self.cap, "eta": self.eta}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DualProblem:
        arrays = {name: np.asarray(tree[name], dtype=np.float64) for name in ("shares", "baseline", "thresholds")}
        return cls(names=tuple(tree["names"]), **arrays, rules=tuple(tree["rules"]), cap=tree["cap"], eta=tree["eta"])


@dataclass(frozen=True)
class DualState:
    """The dual side's whole state; it travels in the checkpoint."""

    period: int
    """Dual steps taken."""
    lambdas: np.ndarray
    """[m], float64"""
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """loss_i of the last step, nats; nan where it had no samples. [m], or [0] before the first."""
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Standard errors of ``losses``."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def to_json(self) -> dict[str, Any]:
        # JSON has neither nan nor infinities: an estimate that does not exist is null.
        arrays = {name: _null_unless_finite(getattr(self, name)) for name in ("lambdas", "losses", "errors", "counts")}
        return {"period": self.period, **arrays}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DualState:
        arrays = {name: np.asarray(tree[name], dtype=np.float64) for name in ("lambdas", "losses", "errors", "counts")}
        return cls(period=tree["period"], **arrays)


def _null_unless_finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def dual_step(problem: DualProblem, state: DualState, sums: Sums) -> DualState:
    """One ascent step of the dual function: ``lambda_i`` up where ``loss_i > c_i``, down where there is slack.

    A constraint without a finite estimate keeps its multiplier.
    """
    losses = problem.baseline + sums.mean()
    violation = losses - problem.thresholds
    measured = np.isfinite(violation)
    violation = np.where(measured, violation, 0.0)
    lambdas = state.lambdas.copy()
    for name in set(problem.rules):
        of_rule = np.array([rule == name for rule in problem.rules]) & measured
        eta = DEFAULT_ETA[name] if problem.eta is None else problem.eta
        proposed = RULES[name](state.lambdas, violation, problem.shares, eta)
        lambdas[of_rule] = np.minimum(proposed, problem.cap)[of_rule]
    return replace(
        state,
        period=state.period + 1,
        lambdas=lambdas,
        losses=losses,
        errors=sums.standard_error(),
        counts=sums.count.astype(np.float64),
    )


def journal_rows(problem: DualProblem, state: DualState, step: int) -> list[dict[str, Any]]:
    """One row per constraint, as ``dual.jsonl`` records them. ``slack = c - loss``: positive when satisfied.

    None stands for what the step could not estimate.
    """
    slack = problem.thresholds - state.losses
    columns = zip(
        problem.names,
        state.lambdas.tolist(),
        _null_unless_finite(state.losses),
        _null_unless_finite(state.errors),
        state.counts.tolist(),
        problem.thresholds.tolist(),
        _null_unless_finite(slack),
        strict=True,
    )
    return [
        {
            "period": state.period,
            "step": step,
            "constraint": name,
            "lambda": multiplier,
            "loss": loss,
            "stderr": error,
            "count": int(count),
            "threshold": threshold,
            "slack": gap,
            "satisfied": None if gap is None else gap >= 0,
        }
        for name, multiplier, loss, error, count, threshold, gap in columns
    ]


def worst_constraint(problem: DualProblem | None, state: DualState) -> tuple[str, float] | None:
    """The constraint with the least slack and its slack in nats; None before the first dual step."""
    if problem is None or not np.isfinite(state.losses).any():
        return None
    slack = problem.thresholds - state.losses
    worst = int(np.nanargmin(slack))
    return problem.names[worst], float(slack[worst])


def newly_capped(problem: DualProblem, before: DualState, after: DualState) -> list[str]:
    """The constraints whose multipliers this step brought to the cap."""
    reached = (after.lambdas >= problem.cap) & (before.lambdas < problem.cap)
    return [problem.names[i] for i in np.flatnonzero(reached)]
