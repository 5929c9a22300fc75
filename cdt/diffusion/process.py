"""The variance-preserving forward process, in log-SNR.

``x_t = a x0 + s eps`` with ``a^2 + s^2 = 1`` and ``l = log(a^2 / s^2)``. Time is diffusers' timestep
``t in [0, T-1]``: a table gives ``l(t)`` at the integers, where it equals the exported betas exactly; in between it is
linear. So networks can be conditioned on a continuous ``t`` and still run in any diffusers scheduler.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from cdt.schema import Config


class DiffusionConfig(Config):
    schedule: Literal["cosine", "linear_beta"] = "cosine"
    """How log-SNR falls over time: ``cosine`` (truncated to the log-SNR range) or DDPM's ``linear_beta``."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network's output means (diffusers' names)."""
    weighting: Literal["elbo", "simple", "min_snr"] = "elbo"
    """Weight of the primal loss over log-SNR. Constraint statistics are in nats whatever stands here."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """Where ``min_snr`` caps the signal-to-noise ratio (arXiv 2303.09556)."""
    timesteps: int = Field(default=1000, ge=10, le=100_000)
    """Number of integer timesteps T of the exported noise schedule."""
    logsnr_min: FiniteFloat | None = None
    """Log-SNR at the noise end of the cosine schedule; default -10 (+ shift). ``linear_beta`` has its own."""
    logsnr_max: FiniteFloat | None = None
    """Log-SNR at the data end of the cosine schedule; default 10 (+ shift)."""
    logsnr_shift: FiniteFloat = 0.0
    """Moves the whole cosine schedule: ``-2 log k`` for images enlarged k times (arXiv 2301.11093)."""

    @model_validator(mode="after")
    def _range_makes_sense(self) -> DiffusionConfig:
        if self.schedule == "linear_beta":
            if self.logsnr_min is not None or self.logsnr_max is not None or self.logsnr_shift:
                raise ValueError("linear_beta fixes the log-SNR range: drop logsnr_min, logsnr_max, logsnr_shift")
        elif self.cosine_range[0] >= self.cosine_range[1]:
            low, high = self.cosine_range
            raise ValueError(f"logsnr_min must be below logsnr_max: they are {low:g} and {high:g}, the shift included")
        return self

    @property
    def cosine_range(self) -> tuple[float, float]:
        """Log-SNR at the noise end and at the data end of the cosine schedule."""
        low = -10.0 + self.logsnr_shift if self.logsnr_min is None else self.logsnr_min
        high = 10.0 + self.logsnr_shift if self.logsnr_max is None else self.logsnr_max
        return low, high


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
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4 * scale, min(0.02 * scale, 0.999), timesteps))
    return np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)


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
