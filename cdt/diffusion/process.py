"""The variance-preserving forward process, in log-SNR.

``x_t = a x0 + s eps`` with ``a^2 + s^2 = 1`` and ``l = log(a^2 / s^2)``. Time is diffusers' timestep
``t in [0, T-1]``: a table gives ``l(t)`` at the integers, where it equals the exported betas exactly; in between it is
linear. So networks can be conditioned on a continuous ``t`` and still run in any diffusers scheduler.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cdt.diffusion.config import BetasConfig, DiffusionConfig


def cosine_logsnr(timesteps: int, logsnr_min: float, logsnr_max: float, shift: float = 0.0) -> np.ndarray:
    """``l = -2 log tan(u) + shift`` for u evenly from ``u(logsnr_max)`` to ``u(logsnr_min)``: [T], nats.

    The cosine schedule, truncated as in Ho & Salimans, arXiv 2207.12598, and shifted as in Hoogeboom et al.,
    arXiv 2301.11093.
    """
    first = math.atan(math.exp(-(logsnr_max - shift) / 2))
    last = math.atan(math.exp(-(logsnr_min - shift) / 2))
    return -2 * np.log(np.tan(np.linspace(first, last, timesteps))) + shift


def linear_beta_logsnr(timesteps: int) -> np.ndarray:
    """DDPM's betas (1e-4 to 0.02 at T = 1000, scaled to other T) as log-SNR: [T]. Ho et al., arXiv 2006.11239."""
    scale = 1000 / timesteps
    return betas_logsnr(np.linspace(1e-4 * scale, min(0.02 * scale, 0.999), timesteps))


def betas_logsnr(betas: np.ndarray) -> np.ndarray:
    """``l = log(a^2 / s^2)`` with ``a^2 = prod (1 - beta)``: [T]."""
    alphas_cumprod = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    return np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)


def scheduler_betas(config: BetasConfig, timesteps: int) -> np.ndarray:
    """beta_t as the schedulers of diffusers compute them (schedulers/scheduling_ddpm.py), in float64: [T]."""
    start, end, T = config.beta_start, config.beta_end, timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas)
    if config.beta_schedule == "linear":
        return np.linspace(start, end, T)
    if config.beta_schedule == "scaled_linear":  # of latent diffusion
        return np.linspace(start**0.5, end**0.5, T) ** 2
    if config.beta_schedule == "sigmoid":  # of GeoDiff
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start
    # Nichol & Dhariwal, arXiv 2102.09672, eq. 17
    alphas_cumprod = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


class Process:
    """``l(t)``, its inverse, and the betas that schedulers of diffusers are built with."""

    def __init__(self, logsnr_table: np.ndarray, prediction: str = "epsilon") -> None:
        self.table = np.asarray(logsnr_table, dtype=np.float64)
        self.prediction = prediction
        self.timesteps = len(self.table)
        self.logsnr_max, self.logsnr_min = float(self.table[0]), float(self.table[-1])

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Process:
        if config.schedule == "linear_beta":
            return cls(linear_beta_logsnr(config.timesteps), config.prediction)
        if config.betas is not None:
            return cls(betas_logsnr(scheduler_betas(config.betas, config.timesteps)), config.prediction)
        return cls(cosine_logsnr(config.timesteps, *config.cosine_range, config.logsnr_shift), config.prediction)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """``a(t)^2`` at the integer timesteps: [T]."""
        return 1 / (1 + np.exp(-self.table))

    @property
    def betas(self) -> np.ndarray:
        """``beta_t = 1 - a(t)^2 / a(t-1)^2``, with a(-1) = 1: [T], the ``trained_betas`` of a diffusers scheduler."""
        cumprod = self.alphas_cumprod
        return 1 - cumprod / np.concatenate([[1.0], cumprod[:-1]])

    def logsnr(self, timestep: Tensor) -> Tensor:
        """``l(t)`` for continuous timesteps [B] in [0, T-1]."""
        table = torch.as_tensor(self.table, device=timestep.device, dtype=torch.float32)
        low = timestep.floor().long().clamp(0, self.timesteps - 2)
        return torch.lerp(table[low], table[low + 1], timestep.float() - low)

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The inverse ``t(l)`` for log-SNRs [B]; those outside the range are clamped to its ends."""
        table = torch.as_tensor(self.table, device=logsnr.device, dtype=torch.float32)
        logsnr = logsnr.float().clamp(self.logsnr_min, self.logsnr_max)
        low = (torch.searchsorted(-table, -logsnr, right=True) - 1).clamp(0, self.timesteps - 2)
        return low + (table[low] - logsnr) / (table[low] - table[low + 1])


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """``a = sqrt(sigmoid(l))``, ``s = sqrt(sigmoid(-l))``: same shape as ``logsnr``."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
