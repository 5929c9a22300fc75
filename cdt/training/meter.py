"""Averages between two reports, without making the device wait at each step."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from cdt.engine.ranks import Ranks


class Meter:
    """Loss, throughput and the time that the loop waited for data, over the ``steps`` since the last report."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._loss: Tensor | None = None
        self._losses = 0
        self.steps, self._waited, self._since = 0, 0.0, time.monotonic()

    def count(self, loss: Tensor, waited: float, applied: bool = True) -> None:
        """Adds a step: its mean loss on this rank (on the device), and the seconds of waiting for its batch.

        The loss counts only if its update was ``applied``, which is so on all ranks or on none.
        """
        if applied:
            self._loss = loss if self._loss is None else self._loss + loss
            self._losses += 1
        self.steps += 1
        self._waited += waited

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks since the last call, then resets; the loss is nan without a step. A collective."""
        loss = torch.zeros(()) if self._loss is None else self._loss
        totals = ranks.sum(np.array([loss.item(), self._waited])) / ranks.world
        total_loss = totals[0] / self._losses if self._losses else np.nan
        total_wait = totals[1] / max(self.steps, 1)
        seconds = time.monotonic() - self._since
        means = {
            "loss": float(total_loss),
            "samples_per_s": self.steps * self._batch_size / seconds,
            "data_wait_s": float(total_wait),
        }
        self._begin()
        return means
