"""Networks that a budget is relative to: the EMA weights of another run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cdt.condition import Condition
from cdt.diffusion.process import Process
from cdt.errors import InputError
from cdt.origin.pretrained import Pretrained, open_pretrained


def open_reference(directory: Path, process: Process) -> Pretrained:
    """A run or pipeline whose predictions compare with ours. Raises InputError."""
    origin = open_pretrained(directory, "reference")
    if origin.process.prediction != process.prediction:
        raise InputError(
            f"reference: {directory} predicts {origin.process.prediction}, this run {process.prediction}: "
            "set diffusion.prediction alike"
        )
    return origin


class Reference(nn.Module):
    """A network as a predictor for ``process``: its own schedule may number noise levels otherwise."""

    def __init__(self, directory: Path, shape: tuple[int, int, int], process: Process) -> None:
        """Raises InputError when ``directory`` is no trained model, or was made for other images."""
        super().__init__()
        origin = open_reference(directory, process)
        self._theirs, self._ours = origin.process, process
        self.network = origin.build(shape)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        with torch.no_grad():
            return self.network(x, self._theirs.network_time(self._ours.logsnr(time)), condition)
