"""Averages between two reports, without making the device wait at each step."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from cdt.training.ranks import Ranks


class Meter:
    """Loss, throughput and the time that the loop waited for data."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._loss: Tensor | None = None
        self._steps, self._waited, self._since = 0, 0.0, time.monotonic()

    def count(self, loss: Tensor, waited: float) -> None:
        """One step: its mean loss on this rank (on the device), and the seconds that its batch was waited for."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._steps += 1
        self._waited += waited

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks since the last call; begins anew. A collective."""
        loss = torch.zeros(()) if self._loss is None else self._loss
        steps = max(self._steps, 1)
        total_loss, total_wait = ranks.sum(np.array([loss.item(), self._waited])) / (steps * ranks.world)
        seconds = time.monotonic() - self._since
        means = {
            "loss": float(total_loss),
            "samples_per_s": self._steps * self._batch_size / seconds,
            "data_wait_s": float(total_wait),
        }
        self._begin()
        return means
