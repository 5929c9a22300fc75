"""What tests compare noise processes with, written down anew, and short ways to draw with one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cdt.diffusion.config import SamplerConfig
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import Sampler


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of the variance-preserving path: ``a^2 + s^2 = 1``, ``l = log(a^2 / s^2)``."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def sample(
    network: nn.Module,
    process: Process,
    shape: tuple[int, int, int],
    count: int,
    *,
    seed: int,
    sampler: str,
    steps: int,
    bounded: bool = True,
    **how: Any,
) -> Tensor:
    """``Sampler.draw``, of one that is built for this once."""
    settings = SamplerConfig.model_validate({"name": sampler, "steps": steps})
    return Sampler(settings, process, shape, bounded).draw(network, count, seed=seed, **how)


def make_scheduler(sampler: str, process: Process, steps: int, *, bounded: bool = True) -> Any:
    return process.scheduler(sampler, steps, bounded=bounded)
