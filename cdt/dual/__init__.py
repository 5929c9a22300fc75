"""Lagrangian pieces, closed forms, update rules and the dual step: pure functions of arrays and states."""

from cdt.dual.closed_form import FloorSolution, largest_feasible_scale, solve_floors
from cdt.dual.lagrangian import ESTIMATORS, Draws, lagrangian, mixture_probabilities, sample_weights
from cdt.dual.rules import RULES
from cdt.dual.step import (
    DualConfig,
    DualProblem,
    DualState,
    Sums,
    dual_step,
    journal_rows,
    newly_capped,
    worst_constraint,
)

__all__ = [
    "ESTIMATORS",
    "RULES",
    "Draws",
    "DualConfig",
    "DualProblem",
    "DualState",
    "FloorSolution",
    "Sums",
    "dual_step",
    "journal_rows",
    "lagrangian",
    "largest_feasible_scale",
    "mixture_probabilities",
    "newly_capped",
    "sample_weights",
    "solve_floors",
    "worst_constraint",
]
