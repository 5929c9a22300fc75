"""Gaussian mixtures: with the exact denoiser in the network's place, losses in nats are what the theory says.

arXiv 2408.15094, section 3, and for the window: integrated from the noise end up to l, the gap between the loss under
p and the loss under q_c is ``KL(q_c * N_l || p * N_l)``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import begin, shares_problem
from mixtures import (
    D,
    Mixture,
    class_losses,
    cross_entropy,
    even_draws,
    exemplars,
    noised_divergence,
    random_draws,
)
from torch import Tensor

from cdt.constraints import Calibration, MinFrequency
from cdt.constraints.window import SEPARATED, auto_window, posterior_cross_entropy
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.dual import Sums, dual_step, mixture_probabilities, solve_floors

APART = Mixture(
    means=torch.tensor([[-0.9, 0.0], [0.0, 0.9], [0.9, 0.0], [0.0, -0.9], [0.0, 0.0]], dtype=torch.float64),
    variances=torch.tensor([0.01, 0.02, 0.01, 0.015, 0.01], dtype=torch.float64),
    shares=torch.tensor([0.02, 0.38, 0.2, 0.3, 0.1], dtype=torch.float64),
)
"""Five classes that are told apart at the data end of the range."""
PROCESS = VariancePreserving.from_config(DiffusionConfig())
V = VariancePreserving.from_config(DiffusionConfig(schedule="linear_beta", prediction="v_prediction"))


def gap(mixture: Mixture, model: Mixture, c: int, end: float, process: Process = PROCESS) -> float:
    """``loss(q_c under model) - loss(q_c under q_c)`` on the same draws, nats."""
    draws = even_draws(2**16)
    losses = [class_losses(mixture, m.denoiser(process), c, end, process, draws) for m in (model, mixture.only(c))]
    return (losses[0] - losses[1]).mean().item()


@pytest.mark.parametrize(("process", "c"), [(PROCESS, 0), (PROCESS, 2), (V, 4)], ids=["eps 0", "eps 2", "v 4"])
def test_the_gap_of_a_class_is_the_log_of_its_share(process: Process, c: int) -> None:
    """``KL(q_c || p) = log(1 / f_c)`` for classes that do not overlap, within 1 %."""
    expected = -math.log(APART.shares[c].item())
    assert noised_divergence(APART, APART, c, process.logsnr_max) == pytest.approx(expected, rel=1e-3)
    assert gap(APART, APART, c, process.logsnr_max, process) == pytest.approx(expected, rel=0.005)


def test_under_the_mixture_of_lambda_the_gap_of_a_class_is_its_budget() -> None:
    """``f_c = (pi_c + lambda_c) / (1 + Lambda)`` is the floor where the floor is active."""
    shares, floors = APART.shares.numpy(), np.array([0.2, 0.01, 0.19, 0.01, 0.15])
    solution = solve_floors(shares, floors)
    assert solution is not None
    assert solution.active.tolist() == [True, False, True, False, True]
    base, *streams = mixture_probabilities(solution.lambdas)
    model = APART.reweighted(base * shares + streams)
    for c in (0, 2, 4):
        assert gap(APART, model, c, PROCESS.logsnr_max) == pytest.approx(math.log(1 / floors[c]), rel=0.01)


@pytest.mark.parametrize("end", [-3.0, -1.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("c", [0, 4])
def test_the_loss_on_a_window_is_the_divergence_of_the_noised_distributions(end: float, c: int) -> None:
    """``KL(q_c * N_l || p * N_l)``, less the next to nothing that is known at the noise end of the range."""
    low = PROCESS.logsnr_min
    exact = noised_divergence(APART, APART, c, end) - noised_divergence(APART, APART, c, low)
    assert gap(APART, APART, c, end) == pytest.approx(exact, rel=0.005)


def test_the_divergence_grows_with_the_window_up_to_that_of_the_distributions() -> None:
    """Data processing: noise only hides."""
    levels = np.linspace(-10, 10, 21)
    for c in range(5):
        divergences = [noised_divergence(APART, APART, c, level) for level in levels]
        assert (np.diff(divergences) > -1e-6).all()
        assert divergences[0] < 1e-4
        assert divergences[-1] == pytest.approx(-math.log(APART.shares[c].item()), rel=1e-3)


@pytest.mark.parametrize("end", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("c", [0, 4])
def test_on_a_window_the_posterior_cross_entropy_at_its_end_is_missing(c: int, end: float) -> None:
    """Full credit for a class only where it can be told apart from the others."""
    share = APART.shares[c].item()
    z = even_draws(2**16).z
    logsnr = torch.full((len(z),), end)
    a, s = (math.sqrt(1 / (1 + math.exp(sign * end))) for sign in (-1, 1))
    x = a * APART.means[c] + (a**2 * APART.variances[c] + s**2).sqrt() * z.double()
    missing = -APART.log_posterior(x, logsnr)[:, c].mean().item()
    assert missing > 0.1
    assert cross_entropy(APART, c, end) == pytest.approx(missing, rel=1e-3)
    assert gap(APART, APART, c, end) == pytest.approx(math.log(1 / share) - missing, rel=0.005)


def others(c: int) -> list[int]:
    return [k for k in range(5) if k != c]


def test_exemplars_have_the_cross_entropy_of_their_densities() -> None:
    """Where noise is wider than the distance between exemplars of a class."""
    inside, outside = exemplars(APART, [0]), exemplars(APART, others(0))
    eps = np.random.default_rng(0).standard_normal((1000, D))
    levels = np.array([1.0, 2.0, 3.0])
    found = posterior_cross_entropy(inside[:, 0, 0], outside[:, 0, 0], 0.02, levels, eps)
    np.testing.assert_allclose(found, [cross_entropy(APART, 0, level) for level in levels], rtol=0.05)


@pytest.mark.parametrize("c", [0, 2, 4])
def test_the_automatic_window_ends_where_the_densities_separate(c: int) -> None:
    """Where 0.05 nats are missing, as exactly as a quarter, 256 draws and a thousand exemplars allow."""
    end = auto_window(exemplars(APART, [c]), exemplars(APART, others(c)), APART.shares[c].item(), -10, 10, seed=0)
    assert cross_entropy(APART, c, end - 1) > SEPARATED > cross_entropy(APART, c, end + 0.25)


def test_dual_ascent_on_probed_losses_reaches_the_closed_form() -> None:
    """The whole dual side, with exact denoisers for training that has converged: windows from exemplars (at which even
    the warm model's share separates), log-ratio thresholds, fixed draws whose differences to calibration are the
    statistic, the mass rule.
    """
    classes, shares, floor, draws = [0, 4], np.array([0.02, 0.1]), 0.2, random_draws(20_000)
    constraint = MinFrequency.model_validate({"class": "c", "min_frequency": floor})
    ends = [
        auto_window(exemplars(APART, [c]), exemplars(APART, others(c)), pi, -10, 10, seed=0)
        for c, pi in zip(classes, shares, strict=True)
    ]

    def probe(model: Mixture) -> list[Tensor]:
        network = model.denoiser(PROCESS)
        return [class_losses(APART, network, c, end, PROCESS, draws) for c, end in zip(classes, ends, strict=True)]

    warm = probe(APART)
    calibrations = [
        Calibration(values.mean().item(), pi, end) for values, pi, end in zip(warm, shares, ends, strict=True)
    ]
    problem = shares_problem(
        shares,
        np.array([constraint.threshold(calibration) for calibration in calibrations]),
        baseline=np.array([calibration.loss for calibration in calibrations]),
        cap=10.0,
    )
    state = begin(np.zeros(2))
    for _ in range(12):
        base, *streams = mixture_probabilities(state.lambdas)
        frequencies = base * APART.shares.numpy()
        frequencies[classes] += streams
        now = probe(APART.reweighted(frequencies))
        differences = torch.stack([after - before for after, before in zip(now, warm, strict=True)]).numpy()
        sums = Sums(differences.sum(1), (differences**2).sum(1), np.full(2, 20_000.0))
        state = dual_step(problem, state, sums)

    solution = solve_floors(shares, np.full(2, floor))
    assert solution is not None
    np.testing.assert_allclose(state.lambdas, solution.lambdas, rtol=0.1)
    np.testing.assert_allclose(state.losses, problem.thresholds, atol=1e-3)
