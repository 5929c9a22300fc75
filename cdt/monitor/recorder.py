"""Records the history of a run. Only rank 0 has a recorder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdt.monitor.journal import Journals
from cdt.monitor.tensorboard import TensorBoard
from cdt.monitor.writer import DualRows, Writer

WRITERS: tuple[Callable[[Path, int], Writer], ...] = (Journals, TensorBoard)
"""Each is made from the run directory and the step at which the run continues, and gets everything, in this order."""


class Recorder:
    """Passes everything on to all writers. They append: what was recorded stays if the run dies."""

    def __init__(self, directory: Path, step: int = 0) -> None:
        self._writers = [writer(directory, step) for writer in WRITERS]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Averages since the last row, by name."""
        for writer in self._writers:
            writer.metrics(step, values)

    def event(self, step: int, kind: str, text: str, **details: Any) -> None:
        """A message about something that happened once."""
        for writer in self._writers:
            writer.event(step, kind, text, details)

    def dual(self, step: int, rows: list[dict[str, Any]], lambdas: np.ndarray, undrawn: Collection[str] = ()) -> None:
        """A dual step: the rows of the journaled constraints, and all multipliers that draw samples.

        ``undrawn``: the constraints whose multipliers do not.
        """
        made = DualRows(rows, 1 + float(np.maximum(lambdas, 0).sum()), undrawn)
        for writer in self._writers:
            writer.dual(step, made)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Other figures, by tag."""
        for writer in self._writers:
            writer.scalars(step, values)

    def grid(self, step: int, picture: np.ndarray) -> None:
        """A sample grid [H, W, C] uint8."""
        for writer in self._writers:
            writer.grid(step, picture)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
