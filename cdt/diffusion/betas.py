"""Noise schedules as betas and as log-SNR: pure functions of their settings."""

from __future__ import annotations

import math

import numpy as np

from cdt.diffusion.config import BetasConfig


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
