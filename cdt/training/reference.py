"""Networks that a budget is relative to: the EMA weights of another run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cdt.config import RunConfig
from cdt.diffusion.process import Process
from cdt.errors import InputError
from cdt.networks import build_network
from cdt.training.checkpoint import complete_checkpoints, read_weights


def open_reference(directory: Path, process: Process) -> tuple[RunConfig, Path]:
    """The configuration and newest checkpoint of a run whose predictions compare with ours. Raises InputError."""
    if not (directory / "config.yaml").is_file():
        raise InputError(f"reference: {directory} is no run directory")
    found = complete_checkpoints(directory / "checkpoints")
    if not found:
        raise InputError(f"reference: {directory} has no complete checkpoint yet")
    config = RunConfig.load(directory / "config.yaml")
    if config.diffusion.prediction != process.prediction:
        raise InputError(
            f"reference: {directory} predicts {config.diffusion.prediction}, this run {process.prediction}: "
            "set diffusion.prediction alike"
        )
    return config, found[-1]


class Reference(nn.Module):
    """A run's network as a predictor for ``process``: its own schedule may number noise levels otherwise."""

    def __init__(self, directory: Path, shape: tuple[int, int, int], process: Process) -> None:
        """Raises InputError when ``directory`` is no run with a checkpoint, or was made for other images."""
        super().__init__()
        config, checkpoint = open_reference(directory, process)
        self._theirs, self._ours = Process.from_config(config.diffusion), process
        self.network = build_network(config.network, shape)
        try:
            self.network.load_state_dict(read_weights(checkpoint))
        except RuntimeError as error:
            raise InputError(f"reference: {directory} was trained on images of another shape") from error
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x, self._theirs.timestep(self._ours.logsnr(timestep)))
