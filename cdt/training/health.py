"""Numerical problems: updates that are skipped, and loss spikes."""

from __future__ import annotations

from collections import deque
from math import isfinite
from statistics import median

from cdt.errors import RunError

REPORTS = 20
"""How many past reports of the loss the next one is compared with."""
SPIKE_SPREADS, SPIKE_RATIO = 10.0, 1.5
"""A loss is a spike if it is this many median deviations above the median, and this many times as large."""


class DivergedError(RunError):
    """Training cannot continue from its present state; it may from an earlier checkpoint, with other data."""

    def __init__(self, message: str, batch: int) -> None:
        """``batch``: the position in the data."""
        super().__init__(message, batch)
        self.batch = batch

    def __str__(self) -> str:
        return self.args[0]


class UnsoundEndError(RunError):
    """All steps are done, but the loss is not finite: what was trained is of no use."""


class Health:
    """Counts skipped updates. The engine skips an update on all ranks if its gradient is not finite."""

    def __init__(self, patience: int) -> None:
        """``patience``: how many consecutive updates may be skipped."""
        self._patience = patience
        self._losses: deque[float] = deque(maxlen=REPORTS)
        self.in_a_row = self._since_report = 0
        self.measures_finite = True
        """Whether the losses of the constraints were finite at the last dual step."""

    @property
    def sound(self) -> bool:
        """Whether losses and gradients are finite now."""
        return self.in_a_row == 0 and self.measures_finite

    def count(self, applied: bool) -> bool:
        """To be called after each update; returns whether too many consecutive updates were skipped."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self._since_report += not applied
        return self.in_a_row >= self._patience

    def take(self) -> int:
        """Updates skipped since the last call."""
        skipped, self._since_report = self._since_report, 0
        return skipped

    def spike(self, loss: float) -> str | None:
        """A message if a reported loss is a spike, else None; a loss that is not finite is ignored."""
        if not isfinite(loss):
            return None
        known = list(self._losses)
        self._losses.append(loss)
        if len(known) < REPORTS // 4:
            return None
        middle = median(known)
        spread = median(abs(each - middle) for each in known)
        if loss <= max(middle + SPIKE_SPREADS * spread, SPIKE_RATIO * middle):
            return None
        return f"the loss is {loss:.4g}; the median of the last {len(known)} reports is {middle:.4g}"
