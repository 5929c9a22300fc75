"""The two kinds of failure that users meet, and the exit status of each."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class CdtError(Exception):
    """A failure that is explained in one or few lines; the command line prints no traceback for it."""

    exit_status = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, from a scheduler."""


class RunError(CdtError):
    """The machine or the run failed: say what happened, where it is recorded, how to resume."""

    exit_status = 1


class InputError(CdtError):
    """The user's input is wrong: say what, where, and what would be right."""

    exit_status = 2


WRONG_PLACE = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    )
)
"""What the operating system refuses because of the place that the user named."""


def refusal(error: OSError, what: str) -> CdtError:
    """``what`` could not be done, and why: an InputError if the place is at fault, else a RunError."""
    kind = InputError if error.errno in WRONG_PLACE else RunError
    return kind(f"{what}: {error.strerror or error}")


class DamagedWarning(UserWarning):
    """Something that is damaged was passed over: names it, and what was taken in its place."""


@contextlib.contextmanager
def at(setting: str) -> Iterator[None]:
    """Says where in the configuration what is wrong meanwhile was asked for."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{setting}: {error}") from error
