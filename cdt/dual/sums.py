"""What a period's measurements say of each constraint: additive sums, divided last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sums:
    """Additive statistics of one period: reduced over ranks by addition, divided last. Each [m], float64."""

    total: np.ndarray
    squares: np.ndarray
    count: np.ndarray

    @classmethod
    def none(cls, m: int) -> Sums:
        """Nothing was counted of m constraints."""
        return cls(np.zeros(m), np.zeros(m), np.zeros(m))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.total + other.total, self.squares + other.squares, self.count + other.count)

    def of(self, chosen: np.ndarray) -> Sums:
        """Those of some constraints: positions, or bool [m]."""
        return Sums(self.total[chosen], self.squares[chosen], self.count[chosen])

    def mean(self) -> np.ndarray:
        """[m]; nan where nothing was counted."""
        return np.divide(self.total, self.count, out=np.full(len(self.total), np.nan), where=self.count > 0)

    def share(self) -> np.ndarray:
        """The mean of counts of samples, hard or soft; of none among n it is taken as 1 / 2n: [m]."""
        return np.maximum(self.mean(), 0.5 / np.maximum(self.count, 1))

    def share_error(self) -> np.ndarray:
        """The standard error of ``share``: [m]; where less was seen than 1 / 2n, that of a count at 1 / 2n."""
        n = np.maximum(self.count, 1)
        least = 0.5 / n
        return np.where(self.mean() < least, np.sqrt(least * (1 - least) / n), self.standard_error())

    def standard_error(self) -> np.ndarray:
        """Of the mean of independent observations: [m]; nan below two."""
        n = np.maximum(self.count, 2)
        with np.errstate(invalid="ignore"):  # inf - inf, where a loss ran away
            variance = np.maximum(self.squares / n - (self.total / n) ** 2, 0.0) * n / (n - 1)
        return np.where(self.count > 1, np.sqrt(variance / n), np.nan)
