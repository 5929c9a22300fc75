"""The interface of every writer of a run's history. A new one is one file and one line in ``recorder.WRITERS``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DualRows:
    """A dual step as it is recorded."""

    rows: list[dict[str, Any]]
    """One per journaled constraint, as ``cdt.dual.journal_rows`` makes them."""
    total: float
    """1 + Lambda, over all multipliers that draw samples."""
    undrawn: Collection[str] = ()
    """Constraints whose multipliers draw none: they are not in the mixture."""


class Writer:
    """A method that is not overridden writes nothing. Methods raise OSError if writing fails."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Averages since the last row, by name."""

    def event(self, step: int, kind: str, text: str, details: Mapping[str, Any]) -> None:
        """A message about something that happened once."""

    def dual(self, step: int, made: DualRows) -> None:
        """A dual step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Other figures, by tag."""

    def grid(self, step: int, picture: np.ndarray) -> None:
        """A sample grid [H, W, C] uint8."""

    def close(self) -> None:
        """Ends writing."""
