"""All constraints of a run, bound to its data: their rows, shares, and the cells that they cut the data into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cdt.constraints.constraint import Constraint
from cdt.constraints.samples import Population


@dataclass(frozen=True)
class Requirements:
    """m constraints on N samples, of which the first ``base`` are the objective's: the data's own stream.

    A *cell* is a set of samples that belong to the same constraints. What is summed or weighted per sample is summed
    or weighted by cell, so a training step costs the same for any number of constraints.
    """

    constraints: dict[str, Constraint]
    rows: dict[str, np.ndarray]
    """The rows of each constraint's samples [n_i]."""
    base: int
    shares: np.ndarray
    """pi_i, the share in the base: [m]; 0 for samples that lie outside."""
    cells: np.ndarray
    """The cell of each row: [N], int64."""
    cell_shares: np.ndarray
    """The share of each cell in the base: [K]"""
    cell_sizes: np.ndarray
    """Samples of each cell: [K]"""
    replayed: np.ndarray
    """Which cells hold the pretrained model's samples: [K], bool."""
    member_cells: np.ndarray
    member_constraints: np.ndarray
    """[P] each: the pairs (cell k, constraint i) with k inside i."""

    @classmethod
    def bind(cls, constraints: Mapping[str, Constraint], population: Population) -> Requirements:
        """Raises InputError for unknown classes and attributes, and for constraints without samples."""
        N, base = population.total, len(population.base)
        rows = {name: constraint.select(name, population) for name, constraint in constraints.items()}
        signature = np.zeros(N, dtype=np.uint64)
        words = np.random.default_rng(0).integers(0, 2**64, size=len(rows) + 1, dtype=np.uint64)
        for word, chosen in zip(words, [*rows.values(), np.asarray(population.replay, np.int64)], strict=True):
            signature[chosen] ^= word
        distinct, cells = np.unique(signature, return_inverse=True)
        K = len(distinct)
        inside = [np.unique(cells[chosen]) for chosen in rows.values()]
        return cls(
            constraints=dict(constraints),
            rows=rows,
            base=base,
            shares=np.array([np.count_nonzero(chosen < base) / base for chosen in rows.values()]),
            cells=cells.astype(np.int64),
            cell_shares=np.bincount(cells[:base], minlength=K) / base,
            cell_sizes=np.bincount(cells, minlength=K),
            replayed=np.isin(np.arange(K), cells[population.replay]),
            member_cells=np.concatenate([np.zeros(0, np.int64), *inside]),
            member_constraints=np.repeat(np.arange(len(inside)), [len(numbers) for numbers in inside]),
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.constraints)

    def by_constraint(self, cell_values: np.ndarray) -> np.ndarray:
        """``sum_{k in i} (n_k / n_i) value_k``: values per cell [K] to constraints [m]; nan cells are left out."""
        known = np.isfinite(cell_values)
        weights = np.where(known, self.cell_sizes, 0.0)[self.member_cells]
        values = np.where(known, cell_values, 0.0)[self.member_cells]
        m = len(self.constraints)
        total = np.bincount(self.member_constraints, weights=weights, minlength=m)
        mean = np.bincount(self.member_constraints, weights=weights * values, minlength=m)
        return np.divide(mean, total, out=np.full(m, np.nan), where=total > 0)
