"""Gaussian mixtures in two dimensions, written as images [1, 1, 2]: their exact denoisers and divergences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from paths import alpha_sigma
from scipy.stats import norm, qmc
from torch import Tensor

from cdt.diffusion.loss import Network, nats, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import Process

D = 2


@dataclass(frozen=True)
class Draws:
    """What a loss is averaged over."""

    u: Tensor
    """Noise level, as a fraction of the window: [B]"""
    z: Tensor
    """Standard normal, for the sample of a class: [B, D]"""
    eps: Tensor
    """[B, 1, 1, D]"""


def random_draws(count: int) -> Draws:
    """As the probe draws them."""
    positions = torch.arange(count)
    return Draws(stratified(0, positions, count), normals(2, positions, (D,)), normals(0, positions, (1, 1, D)))


def even_draws(count: int) -> Draws:
    """Spread evenly over all five dimensions (Sobol): averages converge faster than 1 / sqrt(count)."""
    points = qmc.Sobol(1 + 2 * D, rng=np.random.default_rng(0)).random(count)
    z = torch.as_tensor(norm.ppf(points[:, 1:]), dtype=torch.float32)
    return Draws(torch.as_tensor(points[:, 0], dtype=torch.float32), z[:, :D], z[:, None, None, D:])


@dataclass(frozen=True)
class Mixture:
    """``sum_c f_c N(mu_c, v_c I)``; class c is its component c."""

    means: Tensor
    """[C, D]"""
    variances: Tensor
    """[C]"""
    shares: Tensor
    """f [C]"""

    def reweighted(self, shares: np.ndarray) -> Mixture:
        return Mixture(self.means, self.variances, torch.as_tensor(shares))

    def only(self, c: int) -> Mixture:
        return Mixture(self.means[c : c + 1], self.variances[c : c + 1], torch.ones(1, dtype=torch.float64))

    def sample(self, classes: int | Tensor, z: Tensor) -> Tensor:
        """Samples [B, 1, 1, D] of a class, or of classes [B], from standard normal z [B, D]."""
        return (self.means[classes] + self.variances[classes].sqrt()[..., None] * z).float()[:, None, None]

    def nearest(self, x: Tensor) -> Tensor:
        """The class of samples [B, 1, 1, D] where the classes lie apart: [B]."""
        return torch.cdist(x.flatten(1).double(), self.means).argmin(dim=1)

    def log_densities(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """``log f_c p(x | c)`` up to a constant, for x [B, D] noised to log-SNRs [B]: [B, C]."""
        a, s = (coefficient[:, None] for coefficient in alpha_sigma(logsnr.double()))
        variance = a**2 * self.variances + s**2
        squared = (x[:, None] - a[..., None] * self.means).square().sum(-1)
        return self.shares.log() - squared / (2 * variance) - D / 2 * variance.log()

    def log_posterior(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """``log p(c | x_l)`` for x [B, D] and log-SNRs [B]: [B, C]."""
        return torch.log_softmax(self.log_densities(x, logsnr), dim=1)

    def denoiser(self, process: Process) -> Denoiser:
        return Denoiser(self, process)


@dataclass(frozen=True)
class Denoiser:
    """The network that minimises the loss on the mixture: ``eps = (x - a x0) / s`` or v, with ``x0 = E[x0 | x]``."""

    mixture: Mixture
    process: Process

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        logsnr = self.process.logsnr(timestep).double()
        flat, means, variances = x.double().flatten(1), self.mixture.means, self.mixture.variances[:, None]
        a, s = (coefficient[:, None] for coefficient in alpha_sigma(logsnr))
        gain = a[..., None] * variances / (a[..., None] ** 2 * variances + s[..., None] ** 2)
        by_class = means + gain * (flat[:, None] - a[..., None] * means)
        x0 = (self.mixture.log_posterior(flat, logsnr).exp()[..., None] * by_class).sum(1)
        eps = (flat - a * x0) / s
        output = eps if self.process.prediction == "epsilon" else a * eps - s * x0
        return output.float().reshape(x.shape)


def class_losses(mixture: Mixture, network: Network, c: int, end: float, process: Process, draws: Draws) -> Tensor:
    """Draws in nats of a network's loss on class c, on the window up to ``end``: [B]."""
    low = process.logsnr_min
    logsnr = low + (end - low) * draws.u
    error = squared_error(network, process, mixture.sample(c, draws.z), logsnr, draws.eps)
    return nats(error, D, low, end)


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite: nodes [count^2, D] and weights [count^2] for expectations over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    grid = torch.cartesian_prod(torch.as_tensor(nodes), torch.as_tensor(nodes))
    return grid, torch.as_tensor(np.outer(weights, weights).ravel() / (2 * math.pi))


def noised_divergence(mixture: Mixture, model: Mixture, c: int, level: float) -> float:
    """``KL(q_c * N_l || p * N_l)`` with q_c class c of ``mixture`` and p ``model``, by quadrature."""
    z, weights = hermite(60)
    logsnr = torch.full((len(z),), level)
    a, s = (coefficient[:, None] for coefficient in alpha_sigma(logsnr.double()))
    x = a * mixture.means[c] + (a**2 * mixture.variances[c] + s**2).sqrt() * z
    own, others = (each.log_densities(x, logsnr).logsumexp(dim=1) for each in (mixture.only(c), model))
    return float(weights @ (own - others))


def cross_entropy(mixture: Mixture, c: int, level: float) -> float:
    """``E_{x ~ q_c * N_l}[-log p(c | x)]``, by quadrature: ``log(1 / f_c)`` less the divergence."""
    return -math.log(mixture.shares[c].item()) - noised_divergence(mixture, mixture, c, level)


def exemplars(mixture: Mixture, classes: list[int]) -> np.ndarray:
    """A thousand samples of the mixture restricted to some classes, in proportion to their shares."""
    shares = mixture.shares[classes] / mixture.shares[classes].sum()
    counts = (1000 * shares).round().long().tolist()
    draws = [mixture.sample(c, normals(2 + c, torch.arange(n), (D,))) for c, n in zip(classes, counts, strict=True)]
    return torch.cat(draws).numpy()


def mixture_divergence(mixture: Mixture, model: Mixture, level: float) -> float:
    """``KL(q * N_l || p * N_l)`` of two mixtures, by quadrature over each component of the first."""
    z, weights = hermite(60)
    logsnr = torch.full((len(z),), level)
    a, s = (coefficient[:, None] for coefficient in alpha_sigma(logsnr.double()))
    total = 0.0
    for c, share in enumerate(mixture.shares.tolist()):
        x = a * mixture.means[c] + (a**2 * mixture.variances[c] + s**2).sqrt() * z
        own, theirs = (each.log_densities(x, logsnr).logsumexp(dim=1) for each in (mixture, model))
        total += share * float(weights @ (own - theirs))
    return total


def mixture_samples(mixture: Mixture, count: int) -> Tensor:
    """Samples [count, 1, 1, D] with classes in their shares."""
    ends = (mixture.shares.cumsum(0) * count).round().long()
    classes = torch.searchsorted(ends, torch.arange(count), right=True).clamp(max=len(ends) - 1)
    return mixture.sample(classes, normals(7, torch.arange(count), (D,)))
