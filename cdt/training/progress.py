"""What the progress of a run changes. Everything else about it is frozen in its configuration."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cdt.training.schedule import TrainConfig


@dataclass
class Progress:
    """How far a run is; each rank has the same."""

    schedule: TrainConfig
    """The configured one, or one with fewer dual steps after dual training ended early."""
    step: int = 0
    """Steps done."""
    loss: float | None = None
    """loss(q) on the training batches of the last period, nats; None before the first."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the last save began."""

    @property
    def finished(self) -> bool:
        return self.step >= self.schedule.total_steps

    def end_dual_training(self) -> None:
        """The dual phase ends with the step that is done."""
        self.schedule = self.schedule.ending_at(self.step)

    def save_is_due_by_the_clock(self) -> bool:
        minutes = self.schedule.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
