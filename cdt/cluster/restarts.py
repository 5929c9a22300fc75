"""Restarts from the newest intact checkpoint after a worker died or training diverged, a limited number of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cdt import filenames
from cdt.checkpoints.checkpoint import newest_sound
from cdt.errors import RunError
from cdt.training.health import DivergedError
from cdt.training.job import Job


class WorkerDiedError(RunError):
    """A process died, and a retry may succeed."""


def persist(job: Job, attempt: Callable[[Job], bool], tell: Callable[[str, str], None]) -> bool:
    """Runs attempts until one finishes and returns its result; calls ``tell(kind, message)`` before each retry.

    Ray's own restarts would retry every failure, also those that fail again each time, such as bad data.

    Raises WorkerDiedError after ``run.max_restarts`` consecutive retries without a new checkpoint of this run.
    Raises DivergedError if training diverges again from the same checkpoint with other data. Passes on every other
    error of an attempt.
    """
    own, barren = None if job.fork else job.checkpoint, 0
    while True:
        try:
            return attempt(job)
        except WorkerDiedError as death:
            found, passed_over = newest_sound(job.directory / filenames.CHECKPOINTS)
            barren = 1 if found != own else barren + 1
            if barren > job.config.run.max_restarts:
                raise
            own, job = found, job.again(found)
            place = "the beginning" if found is None else found.name
            tell("restart", "; ".join([str(death), *passed_over, f"restarting from {place}"]))
        except DivergedError as divergence:
            found, passed_over = newest_sound(job.directory / filenames.CHECKPOINTS)
            again = job.again(found)
            if found is None or again.skip_to:
                raise
            own, job = found, replace(again, skip_to=divergence.batch)
            place = f"going back to {found.name}, continuing with the data after batch {divergence.batch}"
            tell("rollback", "; ".join([str(divergence), *passed_over, place]))
