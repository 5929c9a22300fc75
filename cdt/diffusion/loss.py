"""Denoising losses, per sample. Class weights, ranks and multipliers stay outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process, alpha_sigma

Network = Callable[[Tensor, Tensor], Tensor]
"""``F(x [B, C, H, W], timestep [B]) -> [B, C, H, W]``: the prediction that the process names."""
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_t [B, C, H, W], log-SNR [B], eps [B, C, H, W]) -> [B, C, H, W]``: what eps_theta is to be."""


def noise(x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
    """The target of denoising: eps itself."""
    return eps


@dataclass(frozen=True)
class Losses:
    """What one forward pass says of each sample; all [B], float32."""

    logsnr: Tensor
    squared_error: Tensor
    """``mean_D (eps - eps_theta)^2``, or where a teacher's prediction is the target, its distance from that"""
    primal: Tensor
    """The loss that is trained: the squared error under the primal weighting."""


def predict_eps(network: Network, process: Process, x: Tensor, logsnr: Tensor, dtype: torch.dtype) -> Tensor:
    """``eps_theta(x_t, t)`` [B, C, H, W] in float32, whichever quantity the network predicts.

    For v-prediction ``v = a eps - s x0``, hence ``eps = a v + s x`` (Salimans & Ho, arXiv 2202.00512, appendix D); from
    a prediction of x0, ``eps = (x - a x0) / s``.
    """
    output = network(x.to(dtype), process.timestep(logsnr)).float()
    if process.prediction == "epsilon":
        return output
    a, s = (c[:, None, None, None] for c in alpha_sigma(logsnr))
    return a * output + s * x if process.prediction == "v_prediction" else (x - a * output) / s


def squared_error(
    network: Network,
    process: Process,
    x0: Tensor,
    logsnr: Tensor,
    eps: Tensor,
    dtype: torch.dtype = torch.float32,
    target: Target = noise,
) -> Tensor:
    """``mean_D (target - eps_theta(a x0 + s eps, t(l)))^2`` for x0, eps [B, C, H, W] and log-SNRs [B]: [B]."""
    a, s = (c[:, None, None, None] for c in alpha_sigma(logsnr))
    x = a * x0 + s * eps
    eps_theta = predict_eps(network, process, x, logsnr, dtype)
    return (target(x, logsnr, eps) - eps_theta).square().mean(dim=(1, 2, 3))


def nats(squared_error: Tensor, dimensions: int, low: float, high: float | Tensor) -> Tensor:
    """``D (high - low) / 2 * squared error`` [B]: one draw of the loss on the log-SNR window [low, high], in nats.

    ``high`` may be [B] as well. Unbiased when log-SNR is uniform on the window. Over the full range this is the
    variational bound up to a constant (Kingma et al., arXiv 2107.00630, eq. 17); over [logsnr_min, l] it is the
    same for data noised to l.
    """
    return squared_error.double() * (dimensions * (high - low) / 2)


class Weighting:
    """``w(l)``, the primal weight of the squared error of eps at log-SNR drawn uniformly; mean 1 for ``simple``.

    elbo     1                                         (uniform log-SNR is the variational bound)
    simple   |dt/dl| (logsnr_max - logsnr_min)/(T-1)   (t uniform on [0, T-1]; Ho et al., arXiv 2006.11239, eq. 14)
    min_snr  simple * min(SNR, gamma)/SNR              (Hang et al., arXiv 2303.09556)
    """

    def __init__(self, config: DiffusionConfig, process: Process) -> None:
        self.name, self.gamma = config.weighting, config.min_snr_gamma
        spacing = -np.diff(process.table)
        self._density = torch.as_tensor(
            (process.logsnr_max - process.logsnr_min) / (spacing * (process.timesteps - 1)), dtype=torch.float32
        )
        self._process = process

    def __call__(self, logsnr: Tensor) -> Tensor:
        if self.name == "elbo":
            return torch.ones_like(logsnr)
        interval = self._process.timestep(logsnr).long().clamp(max=len(self._density) - 1)
        simple = self._density.to(logsnr.device)[interval]
        return simple if self.name == "simple" else simple * (self.gamma * torch.exp(-logsnr)).clamp(max=1.0)


class Diffusion:
    """The training loss: log-SNR from a uniform draw, noise, network, weight."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.process = Process.from_config(config)
        self.weighting = Weighting(config, self.process)

    def losses(
        self, network: Network, x0: Tensor, u: Tensor, eps: Tensor, dtype: torch.dtype, target: Target = noise
    ) -> Losses:
        """Losses of x0 [B, C, H, W] in [-1, 1] at ``l = logsnr_min + u (logsnr_max - logsnr_min)``, u [B]."""
        low, high = self.process.logsnr_min, self.process.logsnr_max
        logsnr = low + u * (high - low)
        error = squared_error(network, self.process, x0, logsnr, eps, dtype, target)
        return Losses(logsnr, error, self.weighting(logsnr) * error)
