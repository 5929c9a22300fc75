"""Retries with back-off, for what fails for a while and then works again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Retries:
    """Counts consecutive failures without progress; before each retry the wait doubles."""

    def __init__(self, tries: int, first_s: float, longest_s: float) -> None:
        """``tries``: consecutive attempts without progress before giving up. The first wait is ``2 * first_s``."""
        self.tries, self._first_s, self._longest_s = tries, first_s, longest_s
        self._failures = 0

    def progressed(self) -> None:
        """The attempt that failed had brought something: the count starts again with it."""
        self._failures = 0

    def again(self) -> bool:
        """After a failure: waits and returns True, or returns False at once if that was the last try."""
        self._failures += 1
        if self._failures >= self.tries:
            return False
        time.sleep(min(self._first_s * 2**self._failures, self._longest_s))
        return True


def retried(
    attempt: Callable[[], T],
    retries: Retries,
    gives_up: Callable[[str], Exception],
    lasting: tuple[type[Exception], ...],
) -> T:
    """Runs attempts until one succeeds, and returns its result. Errors of the kinds ``lasting`` are raised at once.

    Raises ``gives_up(text)`` after the last try; the text has the number of tries and the last reason.
    """
    while True:
        try:
            return attempt()
        except lasting:
            raise
        except Exception as error:  # of a failing network the libraries raise nearly anything
            if not retries.again():
                raise gives_up(f"{retries.tries} tries failed, the last one: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
