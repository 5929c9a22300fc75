"""Noise schedules as betas and as log-SNR: pure functions of their settings, with the same bits on every processor.

Elementary functions are those of the C library. NumPy's own differ in the last bit between processors with other vector
instructions; ``of=numpy`` takes those, as earlier versions of cdt did.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cdt.diffusion.config import BetasConfig, DiffusionConfig


class _CLibrary:
    log, log1p, exp, tan, cos = (
        staticmethod(np.vectorize(function, otypes=[np.float64]))
        for function in (math.log, math.log1p, math.exp, math.tan, math.cos)
    )


def logsnr_table(config: DiffusionConfig, of: Any = _CLibrary) -> np.ndarray:
    """``l(t)`` at the integer timesteps of the configured schedule: [T], falling, nats."""
    if config.schedule == "linear_beta":
        return linear_beta_logsnr(config.timesteps, of)
    if config.betas is not None:
        return betas_logsnr(scheduler_betas(config.betas, config.timesteps, of), of)
    return cosine_logsnr(config.timesteps, *config.cosine_range, config.logsnr_shift, of)


def cosine_logsnr(
    timesteps: int, logsnr_min: float, logsnr_max: float, shift: float = 0.0, of: Any = _CLibrary
) -> np.ndarray:
    """``l = -2 log tan(u) + shift`` for u evenly from ``u(logsnr_max)`` to ``u(logsnr_min)``: [T], nats.

    The cosine schedule, truncated as in Ho & Salimans, arXiv 2207.12598, and shifted as in Hoogeboom et al.,
    arXiv 2301.11093.
    """
    first = math.atan(math.exp(-(logsnr_max - shift) / 2))
    last = math.atan(math.exp(-(logsnr_min - shift) / 2))
    return -2 * of.log(of.tan(np.linspace(first, last, timesteps))) + shift


def linear_beta_logsnr(timesteps: int, of: Any = _CLibrary) -> np.ndarray:
    """DDPM's betas (1e-4 to 0.02 at T = 1000, scaled to other T) as log-SNR: [T]. Ho et al., arXiv 2006.11239."""
    scale = 1000 / timesteps
    return betas_logsnr(np.linspace(1e-4 * scale, min(0.02 * scale, 0.999), timesteps), of)


def betas_logsnr(betas: np.ndarray, of: Any = _CLibrary) -> np.ndarray:
    """``l = log(a^2 / s^2)`` with ``a^2 = prod (1 - beta)``: [T]."""
    alphas_cumprod = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    return of.log(alphas_cumprod) - of.log1p(-alphas_cumprod)


def scheduler_betas(config: BetasConfig, timesteps: int, of: Any = _CLibrary) -> np.ndarray:
    """beta_t as the schedulers of diffusers compute them (schedulers/scheduling_ddpm.py), in float64: [T]."""
    start, end, T = config.beta_start, config.beta_end, timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas)
    if config.beta_schedule == "linear":
        return np.linspace(start, end, T)
    if config.beta_schedule == "scaled_linear":  # of latent diffusion
        return np.linspace(start**0.5, end**0.5, T) ** 2
    if config.beta_schedule == "sigmoid":  # of GeoDiff
        return (end - start) / (1 + of.exp(-np.linspace(-6, 6, T))) + start
    # Nichol & Dhariwal, arXiv 2102.09672, eq. 17
    alphas_cumprod = of.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)
