"""Exact solutions for floors on the shares of classes with disjoint supports (derived in docs/theory.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class FloorSolution:
    lambdas: np.ndarray
    """lambda* [m]"""
    active: np.ndarray
    """Which floors bind [m], bool."""
    total: float
    """1 + Lambda"""


def solve_floors(shares: np.ndarray, floors: np.ndarray, equal: np.ndarray | None = None) -> FloorSolution | None:
    """lambda* for "at least (or exactly) a share F_i of class i", classes disjoint; None when infeasible.

    The model generates class i with frequency ``(pi_i + lambda_i) / (1 + Lambda)``. With A the set of active floors,
    ``1 + Lambda = (1 - sum_A pi) / (1 - sum_A F)`` and ``lambda_i = F_i (1 + Lambda) - pi_i`` in A, else 0. A floor is
    inactive when ``pi_i / (1 + Lambda) >= F_i`` after the others have diluted the class; activating one floor raises
    Lambda, so A only grows and is found in at most m rounds.

    Floors that name every class and sum to 1 are met by ``lambda_i = s F_i - pi_i`` with the smallest possible
    ``s = 1 + Lambda = max_i pi_i / F_i``.

    Args:
        shares: pi [m], the share of each class in the data, each > 0.
        floors: F [m], each in (0, 1).
        equal: where exactly F_i is asked [m], bool: always active, lambda_i may be negative.
    """
    equal = np.zeros(len(shares), dtype=bool) if equal is None else equal
    active = equal.copy()
    while True:
        free_floor, free_share = 1 - math.fsum(floors[active]), 1 - math.fsum(shares[active])
        if free_floor <= _TOLERANCE:
            break
        if free_share <= _TOLERANCE:  # equalities for every class that do not sum to 1
            return None
        total = free_share / free_floor if active.any() else 1.0
        grown = active | (shares < floors * total * (1 - 1e-15))
        if (grown == active).all():
            lowest = np.where(equal, -np.inf, 0.0)
            return FloorSolution(np.where(active, np.maximum(floors * total - shares, lowest), 0.0), active, total)
        active = grown
    if abs(1 - math.fsum(floors)) > _TOLERANCE or abs(1 - math.fsum(shares)) > _TOLERANCE:
        return None
    scale = float((shares / floors).max())
    lambdas = np.maximum(scale * floors - shares, 0.0)
    return FloorSolution(lambdas, lambdas > 0, scale)


def largest_feasible_scale(floors: np.ndarray, cells: np.ndarray, members: np.ndarray, num_cells: int) -> float:
    """The largest s such that shares of s F_i can be met together, for groups that may overlap; below 1: infeasible.

    A linear program over the shares f of the cells (sets of samples that belong to the same constraints): maximise s
    with ``sum_{k in i} f_k >= s F_i``, ``f >= 0``, ``sum f = 1``. For disjoint groups s = 1 / sum F.

    Args:
        floors: F [m]; ``cells``, ``members``: [P], the pairs (cell, constraint); ``num_cells``: K.
    """
    from scipy.optimize import linprog  # half a second to import: configurations are read without it
    from scipy.sparse import coo_matrix, hstack

    m, largest = len(floors), floors.max()
    coverage = coo_matrix((np.ones(len(cells)), (members, cells)), shape=(m, num_cells))
    unmet = hstack([-coverage, coo_matrix(floors[:, None] / largest)])  # the solver drops what is below 1e-9
    total = np.concatenate([np.ones(num_cells), [0.0]])[None, :]
    objective = np.concatenate([np.zeros(num_cells), [-1.0]])
    solution = linprog(objective, A_ub=unmet, b_ub=np.zeros(m), A_eq=total, b_eq=[1.0], method="highs")
    return float(-solution.fun / largest)


def shares_exist(shares: np.ndarray, equal: np.ndarray, cells: np.ndarray, members: np.ndarray, num_cells: int) -> bool:
    """Whether some distribution over the K cells has at least, or where ``equal`` exactly, the shares F [m].

    ``cells``, ``members`` as for ``largest_feasible_scale``.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix, vstack

    coverage = coo_matrix((np.ones(len(cells)), (members, cells)), shape=(len(shares), num_cells)).tocsr()
    exact = vstack([coverage[equal], np.ones((1, num_cells))])
    totals = np.concatenate([shares[equal], [1.0]])
    found = linprog(
        np.zeros(num_cells), A_ub=-coverage[~equal], b_ub=-shares[~equal] * (1 - _TOLERANCE), A_eq=exact, b_eq=totals
    )
    return bool(found.success)
