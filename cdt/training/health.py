"""Numbers going bad: updates that cannot be made, and losses out of the ordinary."""

from __future__ import annotations

from collections import deque
from math import isfinite
from statistics import median

from cdt.errors import RunError

REPORTS = 20
"""Of the loss, with which the next is compared."""
SPIKE_SPREADS, SPIKE_RATIO = 10.0, 1.5
"""A loss is a spike when it is so many median deviations above the median, and so many times as large."""


class DivergedError(RunError):
    """Training cannot go on from where it is; perhaps from an earlier checkpoint, with other data."""

    def __init__(self, told: str, batch: int) -> None:
        """``batch``: where the data stood."""
        super().__init__(told, batch)
        self.batch = batch

    def __str__(self) -> str:
        return self.args[0]


class Health:
    """An update whose gradient is not finite is left out by the engine, on all ranks alike; here they are counted."""

    def __init__(self, patience: int) -> None:
        """``patience``: updates in a row that may be left out."""
        self._patience = patience
        self._losses: deque[float] = deque(maxlen=REPORTS)
        self.in_a_row = self._since_report = 0

    def count(self, applied: bool) -> bool:
        """After each update; whether there were too many in a row that could not be made."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self._since_report += not applied
        return self.in_a_row >= self._patience

    def take(self) -> int:
        """Updates left out since the last call."""
        skipped, self._since_report = self._since_report, 0
        return skipped

    def spike(self, loss: float) -> str | None:
        """In words, when a reported loss stands out from those before it; one of no update is passed over."""
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
