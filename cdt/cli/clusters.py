"""`cdt submit`, `cdt jobs`, `cdt stop`, `cdt doctor`: runs on clusters."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from cdt.cli.verb import Verb, add_address, add_dashboard, add_overrides, say


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; its paths are the cluster's")
    add_overrides(parser, "settings that replace those of the file")
    add_dashboard(parser)
    parser.add_argument("--follow", action="store_true", help="show what the job prints, and end with its exit status")
    parser.add_argument(
        "--directory", type=Path, default=Path(), metavar="DIR", help="what is shipped (default: this directory)"
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE.whl", help="wheel of cdt to ship, for nodes with another version"
    )


def _submit(arguments: argparse.Namespace, console: Console) -> int:
    from cdt.cluster.jobs import Jobs

    jobs = Jobs(arguments.address)
    name = jobs.submit(arguments.config, arguments.overrides, arguments.directory, arguments.wheel)
    say(console, f"job {name}: {arguments.config} on {jobs.address}; end it with `cdt stop {name}`")
    if not arguments.follow:
        return 0
    try:
        return jobs.follow(name, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"job {name} goes on; end it with `cdt stop {name}`") from None


def _jobs(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.report import jobs_table
    from cdt.cluster.jobs import Jobs

    console.print(jobs_table([vars(row) for row in Jobs(arguments.address).rows()]))


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="ID", help="as `cdt submit` and `cdt jobs` show it")
    add_dashboard(parser)


def _stop(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cluster.jobs import Jobs

    found = Jobs(arguments.address)
    with console.status("the run saves and leaves"):
        ended = found.stop(arguments.job)
    say(console, f"job {arguments.job} {ended}: {found.last_words(arguments.job)}")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="paths that all nodes must see: run directories, shards"
    )
    add_address(parser)


def _doctor(arguments: argparse.Namespace, console: Console) -> int:
    from cdt.cluster.doctor import examine

    found = examine(arguments.address, arguments.paths)
    say(console, *map(str, found))
    return int(any(line.remedy for line in found))


VERBS = (
    Verb("submit", "send a run to a Ray cluster as a job, with the files of this directory", _add_submit, _submit),
    Verb("jobs", "the jobs of a Ray cluster", add_dashboard, _jobs),
    Verb("stop", "make a job save its run and end", _add_stop, _stop),
    Verb(
        "doctor",
        "what this machine or the nodes of a cluster can train, and what to fix",
        _add_doctor,
        _doctor,
    ),
)
