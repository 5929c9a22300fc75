"""What a run writes down as it goes: metrics.jsonl, events.jsonl and TensorBoard. Only rank 0 has one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Recorder:
    """Appends; whatever was recorded stays if the run dies."""

    def __init__(self, directory: Path, step: int = 0) -> None:
        """``step``: where the run goes on; TensorBoard forgets what lies after it, the journals keep both accounts."""
        self._directory = directory
        self._tensorboard = SummaryWriter(str(directory / "tb"), flush_secs=10, purge_step=step + 1 if step else None)
        self._threads_hook, threading.excepthook = threading.excepthook, self._thread_failed

    def _thread_failed(self, told: threading.ExceptHookArgs) -> None:
        """What TensorBoard's own thread meets, as a full disk, the next call here raises: it needs no traceback."""
        if not type(told.thread).__module__.startswith("tensorboard."):
            self._threads_hook(told)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics.jsonl and the scalars ``train/...``."""
        append(self._directory / "metrics.jsonl", {"step": step, **values})
        for name, value in values.items():
            self._tensorboard.add_scalar(f"train/{name}", value, step)

    def event(self, step: int, kind: str, text: str, **details: Any) -> None:
        """Something that happened once, in words: events.jsonl and TensorBoard's text."""
        append(
            self._directory / "events.jsonl",
            {"time": time.time(), "step": step, "event": kind, "text": text, **details},
        )
        self._tensorboard.add_text(f"events/{kind}", text, step)

    def dual(self, step: int, rows: list[dict[str, Any]], lambdas: np.ndarray) -> None:
        """Per journaled constraint its row; and the mixture that the multipliers [m] of all ask for."""
        total = 1 + float(np.maximum(lambdas, 0).sum())
        self._tensorboard.add_scalar("mixture/base", 1 / total, step)
        for row in rows:
            for name in ("lambda", "average", "loss", "threshold", "slack", "satisfied", "share"):
                if row[name] is not None:
                    self._tensorboard.add_scalar(f"constraints/{row['constraint']}/{name}", float(row[name]), step)
            self._tensorboard.add_scalar(f"mixture/{row['constraint']}", max(row["lambda"], 0) / total, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def grid(self, step: int, picture: np.ndarray) -> None:
        """A sample grid [H, W, C] uint8."""
        self._tensorboard.add_image("samples/ema", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Lets go of TensorBoard's file, also where the disk has no room for the last of it."""
        threading.excepthook = self._threads_hook
        with suppress(OSError):
            self._tensorboard.close()


def note(directory: Path, step: int, kind: str, text: str, **details: Any) -> None:
    """An event of a run that is told from outside of its workers, if there is still room for it."""
    with suppress(OSError):
        append(directory / "events.jsonl", {"time": time.time(), "step": step, "event": kind, "text": text, **details})


def append(path: Path, *rows: Mapping[str, Any]) -> None:
    """JSON objects, each on a line of its own; JSON has no word for nan and infinities, they become null."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            known = {name: None if isinstance(x, float) and not isfinite(x) else x for name, x in row.items()}
            file.write(json.dumps(known, allow_nan=False) + "\n")
