"""The ``cdt`` command: one thin function per verb. What they do stands elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cdt.errors import CdtError, InputError

# Verbs import what they need: `cdt --help` and wrong options answer at once.


def train(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.start import check
    from cdt.start import train as run_training
    from cdt.config import RunConfig
    from cdt.monitor.progress import progress_bar
    from cdt.training.estimate import describe_plan

    config = RunConfig.load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        prepared, _ = check(config)
        console.print(describe_plan(config, prepared), markup=False, highlight=False, soft_wrap=True)
        return
    with progress_bar(console, config.run.name) as show:
        run = run_training(config, show)
    _print_end(run, console)


def resume(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.start import resume as resume_training
    from cdt.monitor.progress import progress_bar

    with progress_bar(console, arguments.run.name) as show:
        run = resume_training(arguments.run, arguments.overrides, show)
    _print_end(run, console)


def _print_end(run, console: Console) -> None:  # noqa: ANN001
    pass
