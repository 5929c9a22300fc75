"""The command line of `cdt`, parsed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from cdt.cli.verb import Verb
from cdt.spelling import printable


def build_parser(verbs: Iterable[Verb]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdt", description="Train diffusion models under requirements.")
    added = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb in verbs:
        verb.add_arguments(added.add_parser(verb.name, help=verb.summary, description=verb.summary))
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Like ``parse_args``, which would not recognise a ``key=value`` that follows an option."""
    arguments, unknown = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides = [*arguments.overrides, *(text for text in unknown if not text.startswith("-"))]
        unknown = [text for text in unknown if text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {printable(' '.join(unknown))}")
    return arguments
