"""A run's history in TensorBoard's files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from cdt import filenames
from cdt.monitor.writer import DualRows, Writer

PLOTTED = ("lambda", "average", "loss", "threshold", "slack", "satisfied", "share")
"""The plotted figures of each journaled constraint."""


class TensorBoard(Writer):
    """``tb/`` of a run directory. What an earlier attempt wrote after ``step``, where the run continues, is purged."""

    def __init__(self, directory: Path, step: int) -> None:
        self._board = SummaryWriter(
            str(directory / filenames.TENSORBOARD), flush_secs=10, purge_step=step + 1 if step else None
        )
        self._threads_hook, threading.excepthook = threading.excepthook, self._thread_failed

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """Prints no traceback of TensorBoard's own thread: the next call here raises the same error (a full disk)."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._threads_hook(failed)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.scalars(step, {f"train/{name}": value for name, value in values.items()})

    def event(self, step: int, kind: str, text: str, details: Mapping[str, Any]) -> None:
        self._board.add_text(f"events/{kind}", text, step)

    def dual(self, step: int, made: DualRows) -> None:
        """Each journaled constraint's figures, and the mixture given by the multipliers."""
        self._board.add_scalar("mixture/base", 1 / made.total, step)
        for row in made.rows:
            for name in PLOTTED:
                if row[name] is not None:
                    self._board.add_scalar(f"constraints/{row['constraint']}/{name}", float(row[name]), step)
            if row["constraint"] not in made.undrawn:
                self._board.add_scalar(f"mixture/{row['constraint']}", max(row["lambda"], 0) / made.total, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def grid(self, step: int, picture: np.ndarray) -> None:
        self._board.add_image("samples/ema", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files; ignores a full disk."""
        threading.excepthook = self._threads_hook
        with suppress(OSError):
            self._board.close()
