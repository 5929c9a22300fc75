"""Lagrangian pieces, closed forms, update rules and the dual step: pure functions of arrays and states."""

from cdt.dual.closed_form import FloorSolution, largest_feasible_scale, shares_exist, solve_floors
from cdt.dual.config import DualConfig
from cdt.dual.journal import journal_rows, journaled, replayed, worst_constraint
from cdt.dual.lagrangian import ESTIMATORS, Draws, lagrangian, mixture_probabilities
from cdt.dual.problem import DualProblem, DualState, Sums, finite_or_none
from cdt.dual.rotation import measured_next
from cdt.dual.rules import DEFAULT_ETA, RULES
from cdt.dual.step import dual_step
from cdt.dual.watch import ALARMS, news

__all__ = [
    "ALARMS",
    "DEFAULT_ETA",
    "ESTIMATORS",
    "RULES",
    "Draws",
    "DualConfig",
    "DualProblem",
    "DualState",
    "FloorSolution",
    "Sums",
    "dual_step",
    "finite_or_none",
    "journal_rows",
    "journaled",
    "lagrangian",
    "largest_feasible_scale",
    "measured_next",
    "mixture_probabilities",
    "news",
    "replayed",
    "shares_exist",
    "solve_floors",
    "worst_constraint",
]
