"""Gaussian mixtures: with the exact denoiser in the network's place, losses in nats are what the theory says.

arXiv 2408.15094, section 3, and for the window: integrated from the noise end up to l, the gap between the loss under
p and the loss under q_c is ``KL(q_c * N_l || p * N_l)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cdt.constraints import Calibration, MinFrequency
from cdt.constraints.window import auto_window, posterior_cross_entropy
from cdt.diffusion.loss import nats, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import DiffusionConfig, Process, alpha_sigma
from cdt.dual import DualProblem, DualState, Sums, dual_step, mixture_probabilities, solve_floors

D = 2


@dataclass(frozen=True)
class Mixture:
    """``sum_c f_c N(mu_c, v_c I)`` in two dimensions, written as images [1, 1, 2]; class c is its component c."""

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

    def sample(self, c: int, positions: Tensor) -> Tensor:
        x = self.means[c] + self.variances[c].sqrt() * normals(2 + c, positions, (D,))
        return x.float()[:, None, None]

    def log_posterior(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """``log p(c | x_l)`` for x [B, D] and log-SNRs [B]: [B, C]."""
        a, s = (coefficient[:, None] for coefficient in alpha_sigma(logsnr.double()))
        variance = a**2 * self.variances + s**2
        squared = (x[:, None] - a[..., None] * self.means).square().sum(-1)
        return torch.log_softmax(self.shares.log() - squared / (2 * variance) - D / 2 * variance.log(), dim=1)

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


APART = Mixture(
    means=torch.tensor([[-0.9, 0.0], [0.0, 0.9], [0.9, 0.0], [0.0, -0.9], [0.0, 0.0]], dtype=torch.float64),
    variances=torch.tensor([0.01, 0.02, 0.01, 0.015, 0.01], dtype=torch.float64),
    shares=torch.tensor([0.02, 0.38, 0.2, 0.3, 0.1], dtype=torch.float64),
)
"""Five classes that are told apart at the data end of the range."""
PROCESS = Process.from_config(DiffusionConfig())
V = Process.from_config(DiffusionConfig(schedule="linear_beta", prediction="v_prediction"))


def class_losses(mixture: Mixture, model: Mixture, c: int, end: float, process: Process, count: int) -> Tensor:
    """Draws in nats of class c's loss under the exact denoiser of ``model``, on the window up to ``end``: [count]."""
    positions = torch.arange(count)
    low = process.logsnr_min
    logsnr = low + (end - low) * stratified(0, positions, count)
    eps = normals(0, positions, (1, 1, D))
    error = squared_error(model.denoiser(process), process, mixture.sample(c, positions), logsnr, eps)
    return nats(error, D, low, end)


def gap(mixture: Mixture, model: Mixture, c: int, end: float, process: Process = PROCESS) -> float:
    """``loss(q_c under model) - loss(q_c under q_c)`` on the same 200,000 draws, nats."""
    losses = [class_losses(mixture, m, c, end, process, 200_000) for m in (model, mixture.only(c))]
    return (losses[0] - losses[1]).mean().item()


def cross_entropy(mixture: Mixture, c: int, level: float) -> float:
    """``E_{x ~ q_c * N_l}[-log p(c | x)]``."""
    positions = torch.arange(100_000)
    a, s = alpha_sigma(torch.tensor(level))
    x = a * mixture.sample(c, positions).flatten(1) + s * normals(99, positions, (D,))
    return -mixture.log_posterior(x.double(), torch.full((len(x),), level))[:, c].mean().item()


@pytest.mark.parametrize(("process", "c"), [(PROCESS, 0), (PROCESS, 2), (V, 4)], ids=["eps 0", "eps 2", "v 4"])
def test_the_gap_of_a_class_is_the_log_of_its_share(process: Process, c: int) -> None:
    """``KL(q_c || p) = log(1 / f_c)`` for classes that do not overlap, within 2 %."""
    expected = -math.log(APART.shares[c].item())
    assert gap(APART, APART, c, process.logsnr_max, process) == pytest.approx(expected, rel=0.02)


def test_under_the_mixture_of_lambda_the_gap_of_a_class_is_its_budget() -> None:
    """``f_c = (pi_c + lambda_c) / (1 + Lambda)`` is the floor where the floor is active."""
    shares, floors = APART.shares.numpy(), np.array([0.2, 0.01, 0.19, 0.01, 0.15])
    solution = solve_floors(shares, floors)
    assert solution is not None
    assert solution.active.tolist() == [True, False, True, False, True]
    base, *streams = mixture_probabilities(solution.lambdas)
    model = APART.reweighted(base * shares + streams)
    assert gap(APART, model, 0, PROCESS.logsnr_max) == pytest.approx(math.log(1 / 0.2), rel=0.02)


@pytest.mark.parametrize("end", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("c", [0, 4])
def test_on_a_window_the_posterior_cross_entropy_at_its_end_is_missing(c: int, end: float) -> None:
    """Full credit for a class only where it can be told apart from the others."""
    share = APART.shares[c].item()
    missing = cross_entropy(APART, c, end)
    assert missing > 0.1
    expected = math.log(1 / share) - missing
    assert gap(APART, APART, c, end) == pytest.approx(expected, abs=0.02 * math.log(1 / share))


def exemplars(mixture: Mixture, classes: list[int]) -> np.ndarray:
    """A thousand samples of the mixture restricted to some classes, in proportion to their shares."""
    shares = mixture.shares[classes] / mixture.shares[classes].sum()
    counts = (1000 * shares).round().long().tolist()
    draws = [mixture.sample(c, torch.arange(n)) for c, n in zip(classes, counts, strict=True)]
    return torch.cat(draws).numpy()


def test_exemplars_have_the_cross_entropy_of_their_densities() -> None:
    """Where noise is wider than the distance between exemplars of a class."""
    inside, outside = exemplars(APART, [0]), exemplars(APART, [1, 2, 3, 4])
    eps = np.random.default_rng(0).standard_normal((1000, D))
    levels = np.array([1.0, 2.0, 3.0])
    found = posterior_cross_entropy(inside[:, 0, 0], outside[:, 0, 0], 0.02, levels, eps)
    np.testing.assert_allclose(found, [cross_entropy(APART, 0, level) for level in levels], rtol=0.05)


def test_dual_ascent_on_probed_losses_reaches_the_closed_form() -> None:
    """The whole dual side, with exact denoisers for training that has converged: windows from exemplars (at which even
    the warm model's share separates), log-ratio thresholds, fixed draws whose differences to calibration are the
    statistic, the mass rule.
    """
    classes, shares, floor, draws = [0, 4], np.array([0.02, 0.1]), 0.2, 20_000
    constraint = MinFrequency.model_validate({"class": "c", "min_frequency": floor})
    ends = [
        auto_window(exemplars(APART, [c]), exemplars(APART, [k for k in range(5) if k != c]), pi, -10, 10, seed=0)
        for c, pi in zip(classes, shares, strict=True)
    ]

    def probe(model: Mixture) -> list[Tensor]:
        return [class_losses(APART, model, c, end, PROCESS, draws) for c, end in zip(classes, ends, strict=True)]

    warm = probe(APART)
    baseline = np.array([values.mean().item() for values in warm])
    problem = DualProblem(
        names=("0", "4"),
        shares=shares,
        baseline=baseline,
        thresholds=np.array(
            [constraint.threshold(Calibration(loss, pi)) for loss, pi in zip(baseline, shares, strict=True)]
        ),
        rules=("mass", "mass"),
        cap=10.0,
        eta=1.0,
    )
    state = DualState(period=0, lambdas=np.zeros(2))
    for _ in range(12):
        base, *streams = mixture_probabilities(state.lambdas)
        frequencies = base * APART.shares.numpy()
        frequencies[classes] += streams
        now = probe(APART.reweighted(frequencies))
        differences = torch.stack([after - before for after, before in zip(now, warm, strict=True)]).numpy()
        sums = Sums(differences.sum(1), (differences**2).sum(1), np.full(2, float(draws)))
        state = dual_step(problem, state, sums)

    solution = solve_floors(shares, np.full(2, floor))
    assert solution is not None
    np.testing.assert_allclose(state.lambdas, solution.lambdas, rtol=0.1)
    np.testing.assert_allclose(state.losses, problem.thresholds, atol=1e-3)
