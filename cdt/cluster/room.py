"""How many workers an attempt has: as many as requested, or fewer if resources are short and that is allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from cdt.cluster.session import BUSY_S, free_slots, missing_slots
from cdt.config import RunConfig
from cdt.errors import RunError


class Workers(NamedTuple):
    """The workers of an attempt."""

    number: int
    kind: str
    """Ray's name of the resource that each worker takes one of: GPU or CPU."""


def wait_for_room(
    config: RunConfig, kind: str, tell: Callable[[str, str], None], given: threading.Event
) -> Workers | None:
    """The workers of the next attempt; None if a notice to stop came while resources were missing.

    Raises RunError if resources for ``run.min_workers`` (by default all) are missing for ``run.patience_minutes``.
    """
    settings, most = config.run, config.workers_used()
    least = most if settings.min_workers is None else config.workers_used(settings.min_workers)
    problem = missing_slots(most, kind, BUSY_S, given)
    if problem and free_slots(kind) < least and not given.is_set():
        tell("waiting", f"{problem}; waiting up to {settings.patience_minutes:g} minutes for more")
        if missing_slots(least, kind, 60 * settings.patience_minutes, given) and not given.is_set():
            raise RunError(f"{problem}, after {settings.patience_minutes:g} minutes (run.patience_minutes)")
    if given.is_set():
        return None
    workers = most if problem is None else config.workers_used(free_slots(kind))
    if workers < settings.workers:
        batch = config.train.batch_size // config.engine.accumulation
        why = (
            f"the batch of {batch} samples is not divisible by {settings.workers}"
            if problem is None
            else f"there are resources for {free_slots(kind)}"
        )
        tell("workers", f"{workers} of {settings.workers} workers are used: {why}")
    return Workers(workers, kind)
