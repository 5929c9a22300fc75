"""The record of a dual step: readable for ten constraints and for a hundred thousand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cdt.dual.links import LINKS
from cdt.dual.problem import DualProblem, DualState, finite_or_none

FULL = 100
"""Up to this number of constraints, each has a row in each period. Of more, the strongest and the worst have one, and
all of them in every ``FULL``-th period."""


def journaled(problem: DualProblem, before: DualState, after: DualState) -> np.ndarray:
    """The constraints whose rows are written after a step, in their order: binding, violated, or changed most."""
    m = len(problem.names)
    if m <= FULL or after.period % FULL == 1:
        return np.arange(m)
    change = np.abs(after.lambdas - before.lambdas)
    slack = np.nan_to_num(problem.slack(after.losses), nan=np.inf)
    part = FULL // 2
    strongest = np.argpartition(-np.abs(after.lambdas), part)[:part]
    worst = np.argpartition(slack, part)[:part]
    moved = np.argpartition(-change, part)[:part]
    chosen = [strongest[after.lambdas[strongest] != 0], worst[slack[worst] < 0], moved[change[moved] > 0]]
    return np.unique(np.concatenate(chosen))


def journal_rows(
    problem: DualProblem, state: DualState, step: int, chosen: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """One row per (chosen) constraint, as ``dual.jsonl`` records them. Slack is positive when satisfied.

    ``share`` is that of the generated samples where the statistic is one. None: never estimated.
    """
    chosen = np.arange(len(problem.names)) if chosen is None else chosen
    slack = problem.slack(state.losses)[chosen]
    share = _shares(problem, state.losses)[chosen]
    columns = zip(
        chosen.tolist(),
        state.lambdas[chosen].tolist(),
        state.average[chosen].tolist(),
        finite_or_none(state.losses[chosen]),
        finite_or_none(state.errors[chosen]),
        state.counts[chosen].tolist(),
        problem.thresholds[chosen].tolist(),
        finite_or_none(slack),
        finite_or_none(share),
        strict=True,
    )
    return [
        {
            "period": state.period,
            "step": step,
            "constraint": problem.names[i],
            "lambda": multiplier,
            "average": average,
            "loss": loss,
            "stderr": error,
            "count": int(count),
            "threshold": threshold,
            "slack": gap,
            "satisfied": None if gap is None else gap >= 0,
            "share": share,
        }
        for i, multiplier, average, loss, error, count, threshold, gap, share in columns
    ]


def _shares(problem: DualProblem, losses: np.ndarray) -> np.ndarray:
    """[m]; nan where the statistic is no share."""
    shares = np.full(len(losses), np.nan)
    for name, link in LINKS.items():
        if link.share is not None:
            chosen = problem.links == name
            shares[chosen] = link.share(losses[chosen])
    return shares


class Replayed(NamedTuple):
    """Dual steps that a journal has more than once, by the training steps at which they were made."""

    again: list[int]
    differing: list[int]
    """Those that did not have the same outcome each time."""


def replayed(rows: Iterable[Mapping[str, Any]]) -> Replayed:
    """What was recomputed after an interruption: on as many workers and with the same budgets, nothing may differ."""
    first: dict[tuple[int, str], Mapping[str, Any]] = {}
    again, differing = set(), set()
    for row in rows:
        key = row["step"], row["constraint"]
        if key in first:
            again.add(row["step"])
        if first.setdefault(key, row) != row:
            differing.add(row["step"])
    return Replayed(sorted(again), sorted(differing))


def worst_constraint(problem: DualProblem | None, state: DualState) -> tuple[str, float] | None:
    """The constraint with the least slack and its slack in nats; None before the first dual step."""
    if problem is None or not np.isfinite(state.losses).any():
        return None
    slack = problem.slack(state.losses)
    worst = int(np.nanargmin(slack))
    return problem.names[worst], float(slack[worst])
