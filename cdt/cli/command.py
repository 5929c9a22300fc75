"""The ``cdt`` command: its verbs, their errors, its exit status."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from cdt.cli import clusters, results, shards, training
from cdt.cli.parser import build_parser, parse
from cdt.cli.verb import error_text
from cdt.errors import CdtError, DamagedWarning, RunError, Terminated, refusal
from cdt.spelling import printable

VERBS = {verb.name: verb for verb in (*shards.VERBS, *training.VERBS, *results.VERBS, *clusters.VERBS)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Exit status 0: done; 1: failed while running; 2: the input is wrong; 130: interrupted;
    143: terminated.

    Errors take one or few lines; only a bug has a traceback.
    """
    arguments = parse(build_parser(VERBS.values()), argv)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", DamagedWarning)
        warnings.showwarning = _speaking_for(arguments.verb)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        return VERBS[arguments.verb].run(arguments, Console()) or 0
    except CdtError as error:
        print(f"cdt {arguments.verb}: {error_text(error)}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        told = refusal(error, str(error.filename)) if error.filename else RunError(error)
        print(f"cdt {arguments.verb}: {error_text(told)}", file=sys.stderr)
        return told.exit_status
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        how = "terminated" if terminated else "interrupted"
        print(f"cdt {arguments.verb}: {how}{f'; {error_text(interrupt)}' if interrupt.args else ''}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _speaking_for(verb: str) -> Callable[..., None]:
    """What was passed over, each once, in a line like an error's; other warnings as Python shows them."""
    python, told = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DamagedWarning):
            if (line := f"cdt {verb}: {printable(str(message))}") not in told:
                told.add(line)
                print(line, file=sys.stderr)
        else:
            python(message, category, *where, **more)

    return show


def _terminated(number: int, frame: object) -> None:
    raise Terminated
