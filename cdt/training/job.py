"""A worker's job: its configuration, its directory, and the checkpoint to continue from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cdt.config import RunConfig


@dataclass(frozen=True)
class Job:
    """What every worker gets."""

    config: RunConfig
    directory: Path
    """The run directory, absolute."""
    checkpoint: Path | None = None
    """Where to continue from."""
    fork: bool = False
    """Whether ``checkpoint`` is another run's: then only weights, optimiser and base stream go on."""

    skip_to: int = 0
    """The batch with which the data go on, where those between it and the checkpoint are to be left out."""

    def again(self, checkpoint: Path | None) -> Job:
        """The same job from the run's own newest checkpoint; from the beginning where it has none."""
        if checkpoint is None:
            return self
        skip_to = self.skip_to if checkpoint == self.checkpoint else 0
        return replace(self, checkpoint=checkpoint, fork=False, skip_to=skip_to)
