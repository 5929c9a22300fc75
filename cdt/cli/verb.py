"""What a verb of the command is, and arguments that several verbs have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cdt import spelling
from cdt.data.format.problems import MAX_BAD
from cdt.diffusion.samplers import SAMPLERS
from cdt.errors import InputError


@dataclass(frozen=True)
class Verb:
    """One thing that `cdt` does. Its function imports what it needs, so that `cdt --help` answers at once."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int | None]
    """Returns the exit status, None for 0. Raises CdtError."""


def say(console: Console, *lines: str) -> None:
    """Prints lines. Names in them may hold anything, also line breaks and a terminal's control sequences."""
    for line in lines:
        console.print(spelling.printable(line), markup=False, highlight=False, soft_wrap=True)


def error_text(error: BaseException) -> str:
    """The message of an error, printable. Only its own line breaks stay: an InputError indents the lines after them."""
    line_break = "\n  " if isinstance(error, InputError) else "\n"
    return line_break.join(map(spelling.printable, str(error).split(line_break)))


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    # With a default, argparse does not count them among the arguments that it misses.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def add_address(parser: argparse.ArgumentParser) -> None:
    text = "head of a running Ray cluster that this machine belongs to, or auto to find it (default: start Ray here)"
    parser.add_argument("--address", metavar="HOST:PORT", help=text)


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    text = "the cluster's dashboard, as http://127.0.0.1:8265 (default: RAY_API_SERVER_ADDRESS)"
    parser.add_argument("--address", metavar="URL", help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    text = "last, best (all requirements met, then the lowest loss) or a step (default: last)"
    parser.add_argument("--checkpoint", metavar="WHICH", default="last", help=text)

    text = "do not compare the weights with their digests, which takes seconds for gigabytes"
    parser.add_argument("--no-check", dest="check", action="store_false", help=text)


def add_accept_data(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--accept-data", action="store_true", help=text)


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad", type=float, default=MAX_BAD, metavar="F", help=f"share that may be unusable (default: {MAX_BAD})"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), help="solver (default: the run's own)")
    parser.add_argument("--steps", type=positive, help="network evaluations per sample (default: the run's own)")
    parser.add_argument("--raw", action="store_true", help="the raw weights instead of their moving average")
