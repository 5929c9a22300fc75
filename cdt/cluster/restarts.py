"""Begins again where a worker has died, at the newest sound checkpoint, a few times in a row."""

from __future__ import annotations

from collections.abc import Callable

from cdt.errors import RunError
from cdt.training.checkpoint import newest_sound
from cdt.training.job import Job


class WorkerDiedError(RunError):
    """A process is gone, and nothing says that it would not work the next time."""


def persist(job: Job, attempt: Callable[[Job], bool], tell: Callable[[str], None]) -> bool:
    """What the first attempt returns that comes to an end; ``tell`` gets a line for each that comes after a death.

    Ray could restart workers as well, but any failure alike: bad data, say, would fail as often as it is tried.

    Raises WorkerDiedError after ``run.max_restarts`` in a row without a new checkpoint of the run's own, and whatever
    else an attempt raises.
    """
    own, barren = None if job.fork else job.checkpoint, 0
    while True:
        try:
            return attempt(job)
        except WorkerDiedError as death:
            found, passed_over = newest_sound(job.directory / "checkpoints")
            barren = 1 if found != own else barren + 1
            if barren > job.config.run.max_restarts:
                raise
            own, job = found, job.again(found)
            place = "the beginning" if found is None else found.name
            tell("; ".join([str(death), *passed_over, f"again from {place}"]))
