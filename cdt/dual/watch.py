"""Alarms: unusual cases in the dual state, each reported once and in one sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cdt.dual.links import LINKS
from cdt.dual.problem import DualProblem, DualState

ALARMS = ("cap", "no response", "noise", "no samples")
PATIENCE = 20
"""Periods of violation after which a loss should have responded."""
NOISY = 0.25
"""Standard error of one dual step, relative to what it moves: the share and multiplier of samples that are drawn, or
the multiplier of a penalty."""


def alarms(problem: DualProblem, before: DualState, after: DualState) -> DualState:
    """``after`` with its violations and alarms up to date."""
    violated = problem.slack(after.losses) < 0
    begins = violated & (before.violated_since == 0)
    since = np.where(violated, np.where(begins, after.period, before.violated_since), 0)
    after = replace(
        after,
        violated_since=since,
        lambda_then=np.where(begins, before.lambdas, before.lambda_then),
        loss_then=np.where(begins, after.losses, before.loss_then),
    )
    return replace(after, told=before.told | np.stack([_capped(problem, after), *_odd(problem, after)]))


def _capped(problem: DualProblem, state: DualState) -> np.ndarray:
    """At an end of its range without being met: the cap, or the least weight that an equality leaves its samples."""
    still_above = state.losses < problem.thresholds
    return (state.lambdas >= problem.cap) | (problem.equal & (state.lambdas <= problem.lowest) & still_above)


def _odd(problem: DualProblem, state: DualState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mass = problem.shares + state.lambdas
    long = (state.violated_since > 0) & (state.period - state.violated_since >= PATIENCE)
    with np.errstate(invalid="ignore"):
        raised = mass >= 2 * (problem.shares + state.lambda_then)
        fell = state.loss_then - state.losses > np.nan_to_num(2 * state.errors)
        relative = np.where(problem.rules == "mass", 1.0, 1 / np.maximum(mass, 1e-12))
        # A penalty at 0 has no scale yet.
        noisy = (problem.etas * state.errors * relative > NOISY) & (problem.draws | (mass > 0))
    unmeasured = (state.counts == 0) & problem.every_period
    return long & raised & ~fell, noisy & (state.counts > 0), unmeasured


def news(problem: DualProblem, before: DualState, after: DualState) -> list[tuple[str, list[str], str]]:
    """New alarms: (kind, the constraints that it is about, one sentence with the numbers)."""
    found = []
    for alarm, now, earlier in zip(ALARMS, after.told, before.told, strict=True):
        chosen = np.flatnonzero(now & ~earlier)
        if len(chosen):
            names = [problem.names[i] for i in chosen]
            some = ", ".join(_SENTENCES[alarm](problem, after, i) for i in chosen[:3].tolist())
            more = f" (and {len(chosen) - 3} more)" if len(chosen) > 3 else ""
            found.append((alarm, names, f"{_OPENINGS[alarm]}: {some}{more}{_rivals(problem, after, alarm, chosen)}"))
    return found


_OPENINGS = {
    "cap": "its multiplier is at the end of its range; perhaps it cannot be satisfied",
    "no response": "violated for many periods although lambda grew: its loss does not respond",
    "noise": "the estimate is too noisy for the step size: lower dual.eta or raise probe.draws",
    "no samples": "no samples in this period, the multiplier stays",
}
_SENTENCES = {
    "cap": lambda p, s, i: f"{p.names[i]} (lambda {s.lambdas[i]:.3g}, {_gap(p, s, i)})",
    "no response": lambda p, s, i: (
        f"{p.names[i]} (since period {int(s.violated_since[i])} lambda went from {s.lambda_then[i]:.3g} to "
        f"{s.lambdas[i]:.3g}, the loss from {s.loss_then[i]:.3f} to {s.losses[i]:.3f} {_unit(p, i)}, standard error "
        f"{s.errors[i]:.3f})"
    ),
    "noise": lambda p, s, i: f"{p.names[i]} (standard error {s.errors[i]:.3g} {_unit(p, i)}, eta {p.etas[i]:.3g})",
    "no samples": lambda p, s, i: p.names[i],
}


def _gap(problem: DualProblem, state: DualState, i: int) -> str:
    loss = f"loss {state.losses[i]:.3f}" if np.isfinite(state.losses[i]) else "loss not measured yet"
    return f"{loss} against a threshold of {problem.thresholds[i]:.3f} {_unit(problem, i)}"


def _unit(problem: DualProblem, i: int) -> str:
    return LINKS[str(problem.links[i])].unit


def _rivals(problem: DualProblem, state: DualState, alarm: str, chosen: np.ndarray) -> str:
    """The other constraints that conflict with one at its cap."""
    if alarm != "cap":
        return ""
    others = np.setdiff1d(np.flatnonzero(state.lambdas > 0), chosen)
    strongest = others[np.argsort(-state.lambdas[others])][:3]
    if not len(strongest):
        return ""
    return "; it competes with " + ", ".join(f"{problem.names[i]} (lambda {state.lambdas[i]:.3g})" for i in strongest)
