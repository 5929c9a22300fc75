"""Denoising losses, per sample. Class weights, ranks and multipliers stay outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdt.condition import Condition
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process
from cdt.diffusion.processes import make_process

Network = Callable[..., Tensor]
"""``F(x [B, C, H, W], time [B], condition) -> [B, C, H, W]``: the prediction that the process names. An unconditional
one need not take the third argument: without conditions it is not given."""
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_t [B, C, H, W], log-SNR [B], eps [B, C, H, W]) -> [B, C, H, W]``: what eps_theta is to be."""


def noise(x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
    """The target of denoising: eps itself."""
    return eps


def evaluate(network: Network, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    """What the network predicts."""
    return network(x, time) if condition is None else network(x, time, condition)


@dataclass(frozen=True)
class Losses:
    """What one forward pass says of each sample; all [B], float32."""

    logsnr: Tensor
    squared_error: Tensor
    """``mean_D (eps - eps_theta)^2``, or where a teacher's prediction is the target, its distance from that"""
    primal: Tensor
    """The loss that is trained: the squared error under the primal weighting."""
    x0: Tensor | None = None
    """``x0_theta(x_t)`` [B, C, H, W], where it was asked for."""


def output_of(
    network: Network,
    process: Process,
    x: Tensor,
    logsnr: Tensor,
    dtype: torch.dtype = torch.float32,
    condition: Condition | None = None,
) -> Tensor:
    """The network's output at x_t [B, C, H, W] and log-SNRs [B], computed in ``dtype``: [B, C, H, W], float32."""
    return evaluate(network, process.scale_in(x, logsnr).to(dtype), process.network_time(logsnr), condition).float()


def predict_eps(
    network: Network,
    process: Process,
    x: Tensor,
    logsnr: Tensor,
    dtype: torch.dtype = torch.float32,
    condition: Condition | None = None,
) -> Tensor:
    """``eps_theta(x_t, t)`` [B, C, H, W] in float32, whichever quantity the network predicts."""
    return process.eps_of(output_of(network, process, x, logsnr, dtype, condition), x, logsnr)


def squared_error(
    network: Network,
    process: Process,
    x0: Tensor,
    logsnr: Tensor,
    eps: Tensor,
    dtype: torch.dtype = torch.float32,
    target: Target = noise,
    condition: Condition | None = None,
) -> Tensor:
    """``mean_D (target - eps_theta(a x0 + s eps, t(l)))^2`` for x0, eps [B, C, H, W] and log-SNRs [B]: [B]."""
    x = process.noised(x0, logsnr, eps)
    return _distance(predict_eps(network, process, x, logsnr, dtype, condition), target, x, logsnr, eps)


def _distance(eps_theta: Tensor, target: Target, x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
    """``mean_D (target - eps_theta)^2``: [B]."""
    return (target(x, logsnr, eps) - eps_theta).square().mean(dim=(1, 2, 3))


def nats(squared_error: Tensor, dimensions: int, low: float, high: float | Tensor) -> Tensor:
    """``D (high - low) / 2 * squared error`` [B]: one draw of the loss on the log-SNR window [low, high], in nats.

    ``high`` may be [B] as well. Unbiased when log-SNR is uniform on the window. Over the full range this is the
    variational bound up to a constant (Kingma et al., arXiv 2107.00630, eq. 17); over [logsnr_min, l] it is the
    same for data noised to l.
    """
    return squared_error.double() * (dimensions * (high - low) / 2)


class Weighting:
    """``w(l)``, the primal weight of the squared error of eps at log-SNR drawn uniformly.

    elbo     1                                 (uniform log-SNR is the variational bound)
    simple   the path's own unweighted loss    (``Process.simple_weight``)
    min_snr  simple * min(SNR, gamma)/SNR      (Hang et al., arXiv 2303.09556)
    """

    def __init__(self, config: DiffusionConfig, process: Process) -> None:
        self.name, self.gamma, self._process = config.weighting, config.min_snr_gamma, process

    def __call__(self, logsnr: Tensor) -> Tensor:
        if self.name == "elbo":
            return torch.ones_like(logsnr)
        simple = self._process.simple_weight(logsnr)
        return simple if self.name == "simple" else simple * (self.gamma * torch.exp(-logsnr)).clamp(max=1.0)


class Diffusion:
    """The training loss: log-SNR from a uniform draw, noise, network, weight."""

    def __init__(self, process: Process, weighting: Weighting) -> None:
        self.process, self.weighting = process, weighting

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Diffusion:
        process = make_process(config)
        return cls(process, Weighting(config, process))

    def losses(
        self,
        network: Network,
        x0: Tensor,
        u: Tensor,
        eps: Tensor,
        dtype: torch.dtype,
        target: Target = noise,
        condition: Condition | None = None,
        *,
        keep_x0: bool = False,
    ) -> Losses:
        """Losses of x0 [B, C, H, W] at the log-SNRs that the process trains at for uniform draws u [B].

        ``keep_x0``: with x0_theta of the same forward.
        """
        logsnr = self.process.level(u)
        x = self.process.noised(x0, logsnr, eps)
        output = output_of(network, self.process, x, logsnr, dtype, condition)
        error = _distance(self.process.eps_of(output, x, logsnr), target, x, logsnr, eps)
        x0_theta = self.process.x0_of(output, x, logsnr) if keep_x0 else None
        return Losses(logsnr, error, self.weighting(logsnr) * error, x0_theta)
