"""The state of a run, read only from its files: safe at any time, also while another process trains it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.checkpoints.checkpoint import complete_checkpoints, read_state
from cdt.dual import replayed
from cdt.runs.presence import who_works
from cdt.runs.run import Run


def describe_status(directory: str | Path) -> Iterator[str]:
    """Lines: which process trains it, its progress, its last checkpoint, its restarts, its last event.

    Raises InputError if there is no run.
    """
    run = Run(directory)
    events, metrics = run.rows(filenames.EVENTS), run.rows(filenames.METRICS)
    total = run.config.train.total_steps
    step = metrics[-1]["step"] if metrics else 0
    found = complete_checkpoints(run.directory / filenames.CHECKPOINTS)
    worker = who_works(run.directory)
    ended = bool(events) and events[-1]["event"] == "end"
    if worker:
        state = f"running, process {worker.pid} on {worker.host}"
    elif ended:
        state = "complete"
    else:
        state = f"not running; continue with `cdt resume {directory}`"
    yield f"{directory}: {state}"
    yield f"  step {step:,} of {total:,}" + (f", loss {metrics[-1]['loss']:.4f}" if metrics else "")
    if found:
        age = time.time() - (found[-1] / filenames.MANIFEST).stat().st_mtime
        yield f"  last checkpoint: step {read_state(found[-1]).step:,}, {_span(age)} ago; {len(found)} are kept"
    else:
        yield "  no checkpoint yet"
    starts = sum(event["event"] == "start" for event in events)
    restarts = sum(event["event"] == "restart" for event in events)
    yield f"  started {starts} time{'s' * (starts != 1)}, {restarts} of them after a worker had died"
    if line := _recomputed(run.rows(filenames.DUAL)):
        yield line
    if events:
        last = events[-1]
        yield f"  {_span(time.time() - last['time'])} ago: {last['event']}: {last['text'].splitlines()[0]}"


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
