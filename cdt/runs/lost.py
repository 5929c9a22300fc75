"""Whether a run had checkpoints that are not there any more: it must not begin again as if it were new."""

from __future__ import annotations

from collections.abc import Iterator

from cdt import filenames
from cdt.errors import InputError
from cdt.runs.run import Run, has_checkpoint


def lost_checkpoints(run: Run) -> str | None:
    """What says that there were checkpoints, in words; None if there are some, or nothing says so."""
    return None if has_checkpoint(run.directory) else next(_traces(run), None)


def check_not_lost(run: Run) -> None:
    """Raises InputError if a run would begin again at its first step although it had checkpoints."""
    if trace := lost_checkpoints(run):
        raise InputError(
            f"{run.directory / filenames.CHECKPOINTS} has no checkpoint (step-N), and {trace}: put them back from a "
            f"copy, or start over as a new run: `cdt train {run.directory / filenames.CONFIG} run.name=NAME`"
        )


def _traces(run: Run) -> Iterator[str]:
    """The end of the warm start is saved before the next step; other saves have an event, if it was not lost."""
    saved = [row for row in run.rows(filenames.EVENTS) if row["event"] == "saved"]
    if saved:
        yield f"{filenames.EVENTS} says that {saved[-1]['text']} was saved"
    warm_steps = run.config.train.warm_steps
    if not warm_steps or run.config.run.fork is not None:
        return
    for journal in (filenames.METRICS, filenames.DUAL):
        done = max((row["step"] for row in run.rows(journal)), default=0)
        if done > warm_steps:
            yield f"{journal} says that {done} steps were done"
