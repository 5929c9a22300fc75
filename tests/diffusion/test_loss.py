"""Denoising losses against the closed forms of Gaussian data, and the primal weightings as integrals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from paths import alpha_sigma
from torch import Tensor

from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion, Network, Weighting, nats, predict_eps, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import Process
from cdt.diffusion.variance_preserving import VariancePreserving

SHAPE = (2, 3, 3)
D = 18
EPSILON = VariancePreserving.from_config(DiffusionConfig(prediction="epsilon"))
V = VariancePreserving.from_config(DiffusionConfig(prediction="v_prediction"))


def gaussian_denoiser(process: Process, mean: float, variance: float) -> Network:
    """The exact prediction for data from N(mean, variance I)."""

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        a, s = (c[:, None, None, None].double() for c in alpha_sigma(process.logsnr(timestep)))
        x0 = mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)
        eps = (x - a * x0) / s
        return (eps if process.prediction == "epsilon" else a * eps - s * x0).float()

    return network


def draws(count: int, low: float, high: float, variance: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Data from N(0, variance I), log-SNRs uniform on [low, high], noise."""
    positions = torch.arange(count)
    x0 = math.sqrt(variance) * normals(1, positions, SHAPE)
    return x0, low + (high - low) * stratified(0, positions, count), normals(0, positions, SHAPE)


@pytest.mark.parametrize(("low", "high"), [(-10.0, 10.0), (-10.0, 0.0), (-3.0, 2.0)])
@pytest.mark.parametrize("variance", [0.1, 1.0])
def test_the_loss_of_gaussian_data_in_nats(low: float, high: float, variance: float) -> None:
    """``D/2 int dl v e^l / (1 + v e^l) = D/2 [log(1 + v e^l)]``, the information that x_l has on x0."""
    x0, logsnr, eps = draws(20_000, low, high, variance)
    error = squared_error(gaussian_denoiser(EPSILON, 0.0, variance), EPSILON, x0, logsnr, eps)
    expected = D / 2 * (math.log1p(variance * math.exp(high)) - math.log1p(variance * math.exp(low)))
    assert nats(error, D, low, high).mean().item() == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("end", [10.0, 1.0, -2.0])
def test_differences_of_losses_are_divergences_of_the_noised_distributions(end: float) -> None:
    """N(0, v) under the denoiser of N(m, w), up to l: ``KL(N(0, a^2 v + s^2) || N(a m, a^2 w + s^2))``."""
    v, m, w, low = 0.3, 0.5, 0.8, EPSILON.logsnr_min
    x0, logsnr, eps = draws(50_000, low, end, v)
    losses = [
        nats(squared_error(gaussian_denoiser(EPSILON, mean, variance), EPSILON, x0, logsnr, eps), D, low, end)
        for mean, variance in ((m, w), (0.0, v))
    ]
    a2 = 1 / (1 + math.exp(-end))
    ratio, distance = (a2 * v + 1 - a2) / (a2 * w + 1 - a2), a2 * m**2 / (a2 * w + 1 - a2)
    expected = D / 2 * (ratio - 1 - math.log(ratio) + distance)
    assert (losses[0] - losses[1]).mean().item() == pytest.approx(expected, rel=0.02)


def test_both_parametrisations_of_a_denoiser_have_the_same_losses() -> None:
    x0, logsnr, eps = draws(500, -9.9, 9.9)
    of_eps, of_v = (squared_error(gaussian_denoiser(p, 0.3, 0.4), p, x0, logsnr, eps) for p in (EPSILON, V))
    torch.testing.assert_close(of_v, of_eps, rtol=1e-3, atol=1e-4)


def test_the_loss_is_per_sample() -> None:
    """[B]; a sample's loss is the mean over its own dimensions, and no other sample's."""
    x0, logsnr, eps = draws(5, -3, 3)
    network = gaussian_denoiser(EPSILON, 0.0, 1.0)
    error = squared_error(network, EPSILON, x0, logsnr, eps)
    assert error.shape == (5,)
    assert error.dtype == torch.float32
    for i in range(5):
        a, s = alpha_sigma(logsnr[i])
        predicted = network((a * x0[i] + s * eps[i])[None], EPSILON.network_time(logsnr[i : i + 1]))[0]
        assert error[i].item() == pytest.approx((eps[i] - predicted).square().mean().item(), rel=1e-5)


def test_the_network_sees_its_own_precision_and_the_loss_stays_in_float32() -> None:
    seen = []

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append((x.dtype, timestep.dtype))
        return torch.zeros_like(x)

    x0, logsnr, eps = draws(4, -3, 3)
    error = squared_error(network, V, x0, logsnr, eps, torch.bfloat16)
    assert seen == [(torch.bfloat16, torch.float32)]
    assert error.dtype == torch.float32
    # v = 0 predicts eps = s x: the multiplication by s is that of float32
    a, s = (c[:, None, None, None] for c in alpha_sigma(logsnr))
    torch.testing.assert_close(error, (eps - s * (a * x0 + s * eps)).square().mean(dim=(1, 2, 3)))


def test_from_v_to_eps() -> None:
    """The v of a known x0 and eps gives that eps back."""
    x0, logsnr, eps = draws(50, -9, 9)
    a, s = (c[:, None, None, None] for c in alpha_sigma(logsnr))
    found = predict_eps(lambda x, timestep: a * eps - s * x0, V, a * x0 + s * eps, logsnr, torch.float32)
    torch.testing.assert_close(found, eps, rtol=1e-4, atol=1e-4)


def weighting(name: str, schedule: str, gamma: float = 5.0) -> tuple[Weighting, VariancePreserving]:
    config = DiffusionConfig.model_validate({"weighting": name, "schedule": schedule, "min_snr_gamma": gamma})
    process = VariancePreserving.from_config(config)
    return Weighting(config, process), process


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "1": torch.ones_like,
    "signal": lambda logsnr: alpha_sigma(logsnr)[0] ** 2,
    "bump": lambda logsnr: torch.exp(-((logsnr - 1) ** 2)),
}


@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_simple_weights_make_uniform_log_snr_a_uniform_timestep(
    schedule: str, function: Callable[[Tensor], Tensor]
) -> None:
    simple, process = weighting("simple", schedule)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logsnr = (process.logsnr_min + u * (process.logsnr_max - process.logsnr_min)).float()
    by_weight = (simple(logsnr) * function(logsnr)).double().mean().item()
    by_time = function(process.logsnr((u * (process.timesteps - 1)).float())).double().mean().item()
    assert by_weight == pytest.approx(by_time, rel=2e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_caps_the_weight_of_the_data_at_gamma(schedule: str, gamma: float) -> None:
    """In terms of x0 (whose error is eps' over the SNR) the weight is ``min(SNR, gamma)``."""
    (simple, process), (capped, _) = weighting("simple", schedule), weighting("min_snr", schedule, gamma)
    logsnr = torch.linspace(process.logsnr_min, process.logsnr_max, 999)
    of_x0 = capped(logsnr) / simple(logsnr) * logsnr.exp()
    torch.testing.assert_close(of_x0, logsnr.exp().clamp(max=gamma))


def test_elbo_weights_are_one() -> None:
    elbo, process = weighting("elbo", "cosine")
    assert elbo(torch.linspace(process.logsnr_min, process.logsnr_max, 5)).tolist() == [1.0] * 5


@pytest.mark.parametrize("name", ["elbo", "simple", "min_snr"])
def test_the_training_loss_is_the_weighted_error_at_a_uniform_log_snr(name: str) -> None:
    diffusion = Diffusion.from_config(DiffusionConfig.model_validate({"weighting": name}))
    process = diffusion.process
    x0, _, eps = draws(64, 0, 1)
    u = torch.linspace(0, 1, 64)
    losses = diffusion.losses(gaussian_denoiser(process, 0.0, 1.0), x0, u, eps, torch.float32)
    torch.testing.assert_close(losses.logsnr, process.logsnr_min + u * (process.logsnr_max - process.logsnr_min))
    assert losses.logsnr.shape == losses.squared_error.shape == losses.primal.shape == (64,)
    expected = squared_error(gaussian_denoiser(process, 0.0, 1.0), process, x0, losses.logsnr, eps)
    torch.testing.assert_close(losses.squared_error, expected)
    torch.testing.assert_close(losses.primal, diffusion.weighting(losses.logsnr) * expected)


def test_nats_are_float64_and_scale_with_dimensions_and_window() -> None:
    error = torch.tensor([0.5, 1.0])
    found = nats(error, dimensions=12, low=-10.0, high=-2.0)
    assert found.dtype == torch.float64
    assert found.tolist() == [24.0, 48.0]
