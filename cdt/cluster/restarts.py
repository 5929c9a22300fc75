"""Begins again where a worker has died or training has diverged: at the newest sound checkpoint, so many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cdt.checkpoints.checkpoint import newest_sound
from cdt.errors import RunError
from cdt.training.health import DivergedError
from cdt.training.job import Job


class WorkerDiedError(RunError):
    """A process is gone, and nothing says that it would not work the next time."""


def persist(job: Job, attempt: Callable[[Job], bool], tell: Callable[[str, str], None]) -> bool:
    """What the first attempt returns that comes to an end; ``tell`` gets kind and line of what begins the others.

    Ray could restart workers as well, but any failure alike: bad data, say, would fail as often as it is tried.

    Raises WorkerDiedError after ``run.max_restarts`` in a row without a new checkpoint of the run's own, DivergedError
    when it comes again from the same checkpoint with other data, and whatever else an attempt raises.
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
            tell("restart", "; ".join([str(death), *passed_over, f"again from {place}"]))
        except DivergedError as divergence:
            found, passed_over = newest_sound(job.directory / "checkpoints")
            again = job.again(found)
            if found is None or again.skip_to:
                raise
            own, job = found, replace(again, skip_to=divergence.batch)
            place = f"back to {found.name}, with the data after batch {divergence.batch}"
            tell("rollback", "; ".join([str(divergence), *passed_over, place]))
