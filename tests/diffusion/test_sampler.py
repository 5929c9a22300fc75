"""Sampling: closed forms on Gaussian data, and independence of batch size, count and history."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import alpha_sigma, make_scheduler, sample
from torch import Tensor, nn

from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import sample_seed
from cdt.diffusion.samplers import VARIANCE_PRESERVING as SAMPLERS
from cdt.diffusion.variance_preserving import VariancePreserving, check_steps
from cdt.errors import InputError
from cdt.networks.config import DiTConfig, UNetConfig
from cdt.networks.dit import DiT
from cdt.networks.unet import build_unet

EPS = VariancePreserving.from_config(DiffusionConfig(prediction="epsilon"))
V = VariancePreserving.from_config(DiffusionConfig(prediction="v_prediction"))


class GaussianDenoiser(nn.Module):
    """The exact prediction for data from N(mean, variance I)."""

    def __init__(self, process: Process, mean: float, variance: float) -> None:
        super().__init__()
        self.process, self.mean, self.variance = process, mean, variance

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        a, s = (c[:, None, None, None].double() for c in alpha_sigma(self.process.logsnr(timestep)))
        gain = a * self.variance / (a**2 * self.variance + s**2)
        x0 = self.mean + gain * (x - a * self.mean)
        eps = (x - a * x0) / s
        return (eps if self.process.prediction == "epsilon" else a * eps - s * x0).float()


def random_network(kind: str) -> nn.Module:
    """A network of random weights whose prediction varies with both of its inputs."""
    torch.manual_seed(0)
    if kind == "unet":
        return build_unet(UNetConfig(channels=(8, 16), layers_per_block=1), (1, 8, 8))
    network = DiT(DiTConfig(width=16, depth=2, heads=2), (1, 8, 8))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("process", [EPS, V], ids=["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1000), ("ddpm", 1000), ("dpmpp_2m", 100), ("unipc", 100)])
def test_gaussian_data_come_back_with_their_mean_and_variance(process: Process, sampler: str, steps: int) -> None:
    mean, deviation = 0.2, 0.15
    network = GaussianDenoiser(process, mean, deviation**2)
    x = sample(network, process, (1, 32, 32), 6, seed=0, sampler=sampler, steps=steps)
    assert x.mean().item() == pytest.approx(mean, abs=0.008)  # 4 standard errors
    assert x.std().item() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1000), ("dpmpp_2m", 100), ("unipc", 100)])
def test_deterministic_samplers_follow_the_probability_flow(sampler: str, steps: int) -> None:
    """For Gaussian data its solution carries each x_T to the same quantile of the data."""
    mean, deviation = -0.1, 0.2
    network = GaussianDenoiser(EPS, mean, deviation**2)
    x = sample(network, EPS, (1, 4, 4), 3, seed=5, sampler=sampler, steps=steps)
    noise = [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(sample_seed(5, k))) for k in range(3)]
    a, s = alpha_sigma(torch.tensor(EPS.logsnr_min))
    expected = mean + deviation * (torch.stack(noise) - a * mean) / torch.sqrt(a**2 * deviation**2 + s**2)
    torch.testing.assert_close(x, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(("kind", "process"), [("unet", EPS), ("dit", V)], ids=["unet-epsilon", "dit-v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_the_same_in_every_batch(sampler: str, kind: str, process: Process) -> None:
    network = random_network(kind)
    draw = {"seed": 3, "sampler": sampler, "steps": 5}
    one_by_one, by_7, at_once = (
        sample(network, process, (1, 8, 8), 16, batch_size=batch_size, **draw) for batch_size in (1, 7, 16)
    )
    torch.testing.assert_close(by_7, one_by_one, atol=1e-3, rtol=0)
    torch.testing.assert_close(at_once, one_by_one, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        sample(network, process, (1, 8, 8), 5, first=8, **draw), at_once[8:13], atol=1e-3, rtol=0
    )
    other_seed = sample(network, process, (1, 8, 8), 16, **{**draw, "seed": 4})
    assert (other_seed - at_once).abs().max() > 0.1
    assert (at_once[1:] - at_once[:-1]).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_few_steps_give_finite_samples_in_range(sampler: str, steps: int) -> None:
    x = sample(random_network("dit"), EPS, (1, 8, 8), 2, seed=0, sampler=sampler, steps=steps)
    assert x.isfinite().all()
    assert x.abs().max() <= 1


def test_the_network_draws_in_eval_mode_and_is_put_back() -> None:
    network = build_unet(UNetConfig(channels=(8,), layers_per_block=1, dropout=0.5), (1, 8, 8))
    draw = {"seed": 0, "sampler": "ddim", "steps": 2}
    first = sample(network.train(), EPS, (1, 8, 8), 2, **draw)
    assert network.training
    assert network.unet.training
    assert torch.equal(first, sample(network.eval(), EPS, (1, 8, 8), 2, **draw))
    assert not network.training
    network.train()
    with pytest.raises(RuntimeError):
        sample(network, EPS, (2, 8, 8), 2, **draw)
    assert network.training
    assert not first.requires_grad


def test_no_samples_are_an_empty_batch() -> None:
    assert sample(nn.Identity(), EPS, (3, 8, 8), 0, seed=0, sampler="ddim", steps=2).shape == (0, 3, 8, 8)


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 2**32 - 1), min_size=2, max_size=50))
def test_no_two_samples_share_the_bits_that_torch_heeds(seed: int, samples: set[int]) -> None:
    seeds = [sample_seed(seed, k) for k in samples]
    assert all(0 <= s < 2**64 for s in seeds)
    assert len({s % 2**32 for s in seeds}) == len(samples)


def test_sample_seeds_stay_as_published() -> None:
    published = {(0, 0): 0xE220A839D3FBC081, (0, 1): 0xE220A8396926D4F5, (1, 0): 0x910A2DECDE342017}
    assert {key: sample_seed(*key) for key in published} == published


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_accepted_steps_are_exactly_spaced_down_from_the_last_timestep(sampler: str, steps: int) -> None:
    try:
        timesteps = make_scheduler(sampler, EPS, steps).timesteps
    except InputError as error:
        below, above = str(error).split("take ")[1].split(" or ")
        assert int(below) < steps < int(above)
        check_steps(sampler, int(below), 1000)
        check_steps(sampler, int(above), 1000)
    else:
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0
        assert (timesteps.diff() < 0).all()


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("dpmpp_2m", 1001, "more than the 1000 timesteps"),
        ("dpmpp_2m", 103, "103 steps over 1000 timesteps; take 102 or 104"),
        ("ddim", 150, "150 steps over 1000 timesteps; take 125 or 200"),
    ],
)
def test_unsuitable_steps_are_refused(sampler: str, steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_scheduler(sampler, EPS, steps)


def test_schedulers_carry_the_process_and_can_be_exchanged() -> None:
    import diffusers

    for name, class_name in SAMPLERS.items():
        scheduler = make_scheduler(name, V, 10)
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), torch.tensor(V.alphas_cumprod), rtol=2e-5, atol=0)
        exchanged = getattr(diffusers, class_name).from_config(make_scheduler("dpmpp_2m", V, 10).config)
        for key in ("trained_betas", "prediction_type", "timestep_spacing", "thresholding", "sample_max_value"):
            assert exchanged.config[key] == scheduler.config[key]


def test_the_configuration_names_every_sampler() -> None:
    assert set(get_args(SamplerConfig.model_fields["name"].annotation)) == set(SAMPLERS)
