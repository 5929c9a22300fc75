"""Which constraints are measured in a period, where there are too many to measure all."""

from __future__ import annotations

import numpy as np

from cdt.dual.problem import DualProblem, DualState

NEAR = 0.5
"""nats of slack below which a constraint with lambda = 0 counts as nearly binding"""


def measured_next(problem: DualProblem, state: DualState, room: int) -> np.ndarray:
    """Up to ``room`` constraints for the next period, ascending: half for binding ones, then those unseen for longest.

    A function of the state, so that a resumed run measures the same.
    """
    m = len(problem.names)
    if m <= room:
        return np.arange(m)
    slack = np.nan_to_num(problem.slack(state.losses), nan=np.inf)
    binding = np.flatnonzero((state.lambdas != 0) | (slack < NEAR))
    if len(binding) > room // 2:
        binding = binding[np.argpartition(slack[binding], room // 2)[: room // 2]]
    turns = room - len(binding)
    others = np.setdiff1d(np.arange(m), binding)
    in_turn = others[np.argsort(state.seen[others], kind="stable")][:turns]
    return np.sort(np.concatenate([binding, in_turn]))
