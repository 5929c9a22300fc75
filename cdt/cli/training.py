"""`cdt train`, `cdt resume`, `cdt fetch`, `cdt status`: runs while they train."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from cdt.cli.verb import Verb, add_accept_data, add_address, add_overrides, add_run, say


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    add_overrides(parser, "settings that replace those of the file")
    add_address(parser)
    add_accept_data(parser, "let run.fork have been trained on other samples than these; it is recorded")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, leave nothing behind")


def _train(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import progress_bar
    from cdt.cli.report import end_of_training
    from cdt.cluster.session import cluster
    from cdt.config import RunConfig
    from cdt.runs.dryrun import describe_plan
    from cdt.runs.start import train

    config = RunConfig.load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        with cluster(arguments.address):
            say(console, *describe_plan(config, accept_data=arguments.accept_data).split("\n"))
        return
    with progress_bar(console, config.run.name) as show:
        run = train(config, show, arguments.address, accept_data=arguments.accept_data)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def _add_resume(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_overrides(parser, "settings that may change, as train.dual_steps")
    add_address(parser)
    add_accept_data(parser, "go on with other samples or classifiers than before; it is recorded")


def _resume(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import progress_bar
    from cdt.cli.report import end_of_training
    from cdt.files import resolved
    from cdt.runs.start import resume

    with progress_bar(console, resolved(arguments.run).name) as show:
        run = resume(arguments.run, arguments.overrides, show, arguments.address, accept_data=arguments.accept_data)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the run, as s3://bucket/runs/NAME")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the new run directory")


def _fetch(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.runs.mirror import fetch

    fetch(arguments.url, arguments.directory)
    say(console, f"run: {arguments.directory}; continue it with `cdt resume {arguments.directory}`")


def _status(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.report import end_of_training
    from cdt.runs.run import load
    from cdt.runs.status import describe_status

    say(console, *describe_status(arguments.run))
    if rows := load(arguments.run).constraint_rows():
        console.print(end_of_training(arguments.run, rows))


VERBS = (
    Verb("train", "train a new run", _add_train, _train),
    Verb("resume", "continue a run from its newest complete checkpoint", _add_resume, _resume),
    Verb("fetch", "download a run from the object store that it was mirrored to (run.mirror)", _add_fetch, _fetch),
    Verb("status", "how far a run is, and whether a process trains it", add_run, _status),
)
