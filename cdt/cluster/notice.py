"""SIGTERM, which schedulers send before they preempt a machine: save and exit, to be resumed later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def notice() -> Iterator[threading.Event]:
    """Yields an event that the first SIGTERM sets; a second one is handled as before."""
    given = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield given
        return
    before = signal.getsignal(signal.SIGTERM)

    def take(number: int, frame: object) -> None:
        given.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, take)
    try:
        yield given
    finally:
        signal.signal(signal.SIGTERM, before)
