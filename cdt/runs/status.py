"""The state of a run, read only from its files: safe at any time, also while another process trains it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.checkpoints.checkpoint import damage, named_checkpoints, read_state
from cdt.dual import replayed
from cdt.errors import InputError
from cdt.runs.lost import lost_checkpoints
from cdt.runs.presence import who_works
from cdt.runs.rows import read_journal
from cdt.runs.run import Run


def describe_status(directory: str | Path) -> Iterator[str]:
    """Lines: which process trains it, its progress, its last checkpoint, its restarts, its last event, what is damaged.

    Weights are not compared with their digests. Raises InputError if there is no run, or a journal cannot be read.
    """
    run = Run(directory)
    journals = {
        name: read_journal(run.directory, name) for name in (filenames.EVENTS, filenames.METRICS, filenames.DUAL)
    }
    events, metrics = journals[filenames.EVENTS].rows, journals[filenames.METRICS].rows
    total = run.config.train.total_steps
    step = metrics[-1]["step"] if metrics else 0
    worker = who_works(run.directory)
    ended = bool(events) and events[-1]["event"] == "end"
    if worker:
        state = f"running, process {worker.pid} on {worker.host}"
    elif ended:
        state = "complete"
    else:
        state = f"not running; continue with `cdt resume {directory}`"
    yield f"{directory}: {state}"
    yield f"  step {step:,} of {total:,}" + (f", loss {_loss(metrics[-1]['loss'])}" if metrics else "")
    yield from _checkpoints(run)
    starts = sum(event["event"] == "start" for event in events)
    restarts = sum(event["event"] == "restart" for event in events)
    yield f"  started {starts} time{'s' * (starts != 1)}, {restarts} of them after a worker had died"
    if line := _recomputed(journals[filenames.DUAL].rows):
        yield line
    for name, journal in journals.items():
        if journal.unusable:
            yield f"  {name} is damaged: {journal.unusable} of its lines cannot be read and are left out"
    yield from _damaged_files(run)
    if events:
        last = events[-1]
        text = next(iter(last["text"].splitlines()), "")
        yield f"  {_span(time.time() - last['time'])} ago: {last['event']}: {text}"


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


def _checkpoints(run: Run) -> Iterator[str]:
    problems = {path: damage(path, read=()) for path in named_checkpoints(run.directory / filenames.CHECKPOINTS)}
    usable = [path for path, problem in problems.items() if problem is None]
    if usable:
        newest = usable[-1]
        age = time.time() - (newest / filenames.MANIFEST).stat().st_mtime
        yield f"  last checkpoint: step {read_state(newest).step:,}, {_span(age)} ago; {len(usable)} are kept"
    elif not problems:
        lost = lost_checkpoints(run)
        yield f"  no checkpoint any more, though {lost}" if lost else "  no checkpoint yet"
    for path, problem in problems.items():
        if problem is not None:
            yield f"  {path.name} is damaged: {problem}"


def _damaged_files(run: Run) -> Iterator[str]:
    """What cannot be read of the files that are written once. Whoever needs them says it, too, but later."""
    readers = {filenames.DATA: lambda: run.data, filenames.CALIBRATION: run.calibration}
    for name, read in readers.items():
        try:
            read()
        except InputError as error:
            problem = str(error).removeprefix(str(run.directory / name)).removeprefix(" cannot be read").lstrip(": ")
            yield f"  {name} is damaged: {problem}"


def _recomputed(journal: list[dict[str, Any]]) -> str | None:
    """How many dual steps were recomputed after an interruption, and whether any result differs; None without any."""
    again, differing = replayed(journal)
    if not again:
        return None
    steps = "1 dual step was" if len(again) == 1 else f"{len(again)} dual steps were"
    results = "identical results"
    if differing:
        results = f"different results at {len(differing)}, first at step {differing[0]:,}"
    return f"  {steps} recomputed after an interruption, with {results}"


def _span(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} s"
