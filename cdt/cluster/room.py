"""How many workers an attempt has: as many as asked for, or as there is room for where fewer will do."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cdt.cluster.session import BUSY_S, free_slots, missing_slots
from cdt.config import RunConfig
from cdt.errors import RunError


def wait_for_room(config: RunConfig, tell: Callable[[str, str], None], given: threading.Event) -> int | None:
    """The number of workers of the next attempt; None when a notice to leave came while there was no room.

    Raises RunError where there is none for ``run.min_workers`` (by default all) within ``run.patience_minutes``.
    """
    settings, most = config.run, config.workers_used()
    least = most if settings.min_workers is None else config.workers_used(settings.min_workers)
    problem = missing_slots(most, BUSY_S, given)
    if problem and free_slots() < least and not given.is_set():
        tell("waiting", f"{problem}; waiting up to {settings.patience_minutes:g} minutes for more")
        if missing_slots(least, 60 * settings.patience_minutes, given) and not given.is_set():
            raise RunError(f"{problem}, after {settings.patience_minutes:g} minutes (run.patience_minutes)")
    if given.is_set():
        return None
    workers = most if problem is None else config.workers_used(free_slots())
    if workers < settings.workers:
        batch = config.train.batch_size // config.engine.accumulation
        why = f"{batch} samples do not divide over more" if problem is None else f"room for {free_slots()}"
        tell("workers", f"{workers} of {settings.workers} workers are used: {why}")
    return workers
