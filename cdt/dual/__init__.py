"""Lagrangian pieces, closed forms, update rules and the dual step: pure functions of arrays and states."""

from cdt.dual.actuators import ACTUATORS, lowest_multipliers
from cdt.dual.closed_form import FloorSolution, largest_feasible_scale, shares_exist, solve_floors
from cdt.dual.config import DualConfig
from cdt.dual.journal import journal_rows, journaled, replayed, worst_constraint
from cdt.dual.lagrangian import ESTIMATORS, Draws, lagrangian, mixture_probabilities
from cdt.dual.links import LINKS, Link
from cdt.dual.problem import DualProblem, DualState, finite_or_none
from cdt.dual.rotation import measured_next
from cdt.dual.rules import DEFAULT_ETA, RULES
from cdt.dual.step import dual_step
from cdt.dual.sums import Sums
from cdt.dual.watch import ALARMS, news

__all__ = [
    "ACTUATORS",
    "ALARMS",
    "DEFAULT_ETA",
    "ESTIMATORS",
    "LINKS",
    "RULES",
    "Draws",
    "DualConfig",
    "DualProblem",
    "DualState",
    "FloorSolution",
    "Link",
    "Sums",
    "dual_step",
    "finite_or_none",
    "journal_rows",
    "journaled",
    "lagrangian",
    "largest_feasible_scale",
    "lowest_multipliers",
    "measured_next",
    "mixture_probabilities",
    "news",
    "replayed",
    "shares_exist",
    "solve_floors",
    "worst_constraint",
]
