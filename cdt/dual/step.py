"""The dual step: the one place where multipliers change. A pure function of states, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cdt.dual.links import LINKS
from cdt.dual.problem import DualProblem, DualState
from cdt.dual.rules import RULES, proportional_term
from cdt.dual.sums import Sums
from cdt.dual.watch import alarms


def estimated_losses(problem: DualProblem, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """loss_i and its standard error, by each constraint's link: [m] each; nan where nothing was counted."""
    losses, errors = np.full((2, len(problem.names)), np.nan)
    for name, link in LINKS.items():
        chosen = problem.links == name
        if chosen.any():
            losses[chosen], errors[chosen] = link.losses(sums.of(chosen), problem.baseline[chosen])
    return losses, errors


def dual_step(problem: DualProblem, state: DualState, sums: Sums) -> DualState:
    """One ascent step of the dual function: ``lambda_i`` up where ``loss_i > c_i``, down where there is slack.

    The direction is ``v_i + kp (change of the smoothed v_i) - 2 gamma lambda_i`` with ``v_i = loss_i - c_i``; gamma > 0
    relaxes the constraints as far as it pays (resilient: h(u) = u^2 / (4 gamma); arXiv 2408.15094, section 5). A
    constraint without a finite estimate keeps its multiplier, and no multiplier leaves [lowest, cap].
    """
    losses, errors = estimated_losses(problem, sums)
    measured = np.isfinite(losses)
    violation = np.where(measured, losses - problem.thresholds, 0.0)
    change, smoothed = proportional_term(violation, state.smoothed, problem.nu)
    step = problem.etas * (violation + problem.kp * change - 2 * problem.gamma * state.lambdas)
    lambdas = state.lambdas.copy()
    for name, rule in RULES.items():
        chosen = measured & (problem.rules == name)
        proposed = rule(state.lambdas, step, problem.shares, problem.lowest)
        lambdas[chosen] = np.minimum(proposed, problem.cap)[chosen]
    period = state.period + 1
    after = replace(
        state,
        period=period,
        lambdas=lambdas,
        # Weights that grow linearly forget the start: Shamir & Zhang, arXiv 1212.1824, section 4.
        average=state.average + (lambdas - state.average) * 2 / (period + 1),
        losses=np.where(measured, losses, state.losses),
        errors=np.where(measured, errors, state.errors),
        counts=sums.count.astype(np.float64),
        seen=np.where(sums.count > 0, period, state.seen),
        smoothed=np.where(measured, smoothed, state.smoothed),
    )
    satisfied = bool((problem.slack(after.losses) >= 0).all())
    after = replace(after, satisfied_for=state.satisfied_for + 1 if satisfied else 0)
    return alarms(problem, state, after)
