"""The progress bar: phase, step, loss, samples per second, time left and the worst constraint on one line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cdt.cli.verb import say
from cdt.spelling import printable

STARTING = "starting"
LOG_S = 60.0
"""Seconds between two lines of progress where there is no terminal to redraw a bar in."""


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields the receiver of the trainer's reports. Without a terminal, it prints a line per minute, and the end."""
    # At most 80 characters in total, so that nothing is cut off on an ordinary terminal.
    columns = (
        TextColumn("{task.fields[title]} [bold]{task.description}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(STARTING, title=escape(printable(title)), figures="", total=None)
        last_line = math.inf

        def show(report: dict[str, Any]) -> None:
            nonlocal last_line
            if "said" in report:
                say(progress.console, *report["said"].split("\n"))
            if "step" in report:
                last_line = min(last_line, time.monotonic())  # starting does not count
                if not console.is_terminal and time.monotonic() - last_line > LOG_S:
                    last_line = time.monotonic()
                    say(progress.console, f"{title} {report['phase']} {figures(report)}")
                progress.update(
                    task,
                    description=report["phase"],
                    completed=report["step"],
                    total=report["total"],
                    figures=figures(report),
                )

        try:
            yield show
        finally:
            if progress.tasks[0].total is None:  # refused before its first step: only the reason is printed
                progress.remove_task(task)


def figures(report: dict[str, Any]) -> str:
    """The numbers that a report has so far: step, loss, throughput, and the worst constraint's slack in nats."""
    parts = [f"{report['step']}/{report['total']}"]
    if "loss" in report:
        parts.append(f"loss {report['loss']:.3f}")
    if "samples_per_s" in report:
        parts.append(f"{report['samples_per_s']:.0f} samples/s")
    if report.get("worst"):
        name, slack = report["worst"]
        parts.append(f"{name} {slack:+.2f}")
    return " ".join(parts)


@contextmanager
def counting_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``progress(done, total)``; the bar is removed at the end."""
    columns = (SpinnerColumn(), TextColumn(title), BarColumn(bar_width=30), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
