"""The process as a table: log-SNR, its inverse, and the betas that schedulers are built with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import alpha_sigma

from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.errors import InputError
from cdt.settings import parse

CONFIGS = {
    "cosine": DiffusionConfig(),
    "cosine of 10 steps": DiffusionConfig(timesteps=10),
    "shifted": DiffusionConfig(logsnr_shift=-2 * math.log(4)),
    "narrow": DiffusionConfig(logsnr_min=-6, logsnr_max=3.3, timesteps=400),
    "linear beta": DiffusionConfig(schedule="linear_beta"),
    "linear beta of 10 steps": DiffusionConfig(schedule="linear_beta", timesteps=10),
}
processes = [VariancePreserving.from_config(config) for config in CONFIGS.values()]
each_process = pytest.mark.parametrize("process", processes, ids=CONFIGS.keys())


@each_process
def test_at_integers_log_snr_equals_that_of_the_exported_betas(process: VariancePreserving) -> None:
    """As a scheduler computes it: ``alphas_cumprod = cumprod(1 - betas)``."""
    alphas_cumprod = np.cumprod(1 - process.betas)
    np.testing.assert_allclose(process.alphas_cumprod, alphas_cumprod, rtol=1e-10)
    logsnr = process.logsnr(torch.arange(process.timesteps))
    np.testing.assert_allclose(logsnr, np.log(alphas_cumprod / (1 - alphas_cumprod)), rtol=1e-6, atol=1e-6)
    assert ((process.betas > 0) & (process.betas < 1)).all()


@each_process
def test_timestep_is_the_inverse_of_log_snr(process: VariancePreserving) -> None:
    """On and between the integers, up to float32."""
    t = torch.linspace(0, process.timesteps - 1, 10_001)
    torch.testing.assert_close(process.network_time(process.logsnr(t)), t, rtol=1e-5, atol=1e-3)
    integers = torch.arange(process.timesteps).float()
    assert torch.equal(process.network_time(process.logsnr(integers)), integers)
    levels = torch.linspace(process.logsnr_min, process.logsnr_max, 10_001)
    torch.testing.assert_close(process.logsnr(process.network_time(levels)), levels, rtol=1e-5, atol=1e-5)


@each_process
def test_log_snr_falls_over_time_and_is_linear_between_integers(process: VariancePreserving) -> None:
    assert (np.diff(process.table) < 0).all()
    low = torch.arange(process.timesteps - 1)
    middle = (process.logsnr(low) + process.logsnr(low + 1)) / 2
    torch.testing.assert_close(process.logsnr(low + 0.5), middle)


@each_process
def test_beyond_the_range_the_timestep_is_that_of_its_ends(process: VariancePreserving) -> None:
    beyond = torch.tensor([process.logsnr_max + 5, process.logsnr_min - 5])
    assert process.network_time(beyond).tolist() == [0.0, process.timesteps - 1.0]


def test_the_cosine_schedule_is_a_cosine() -> None:
    """``a = cos(u)`` with u evenly spaced over time."""
    process = VariancePreserving.from_config(DiffusionConfig())
    u = np.arccos(np.sqrt(process.alphas_cumprod))
    np.testing.assert_allclose(np.diff(u), (u[-1] - u[0]) / (process.timesteps - 1), rtol=1e-6)
    assert (process.logsnr_min, process.logsnr_max) == pytest.approx((-10, 10))


def test_enlarged_images_have_the_schedule_shifted_as_a_whole() -> None:
    shift = -2 * math.log(2)
    plain, shifted = (VariancePreserving.from_config(DiffusionConfig(logsnr_shift=s)).table for s in (0.0, shift))
    np.testing.assert_allclose(shifted, plain + shift, atol=1e-9)


def test_ends_that_are_given_hold_whatever_the_shift() -> None:
    process = VariancePreserving.from_config(DiffusionConfig(logsnr_min=-7, logsnr_max=0, logsnr_shift=-3))
    assert (process.logsnr_min, process.logsnr_max) == pytest.approx((-7, 0))


@pytest.mark.parametrize(("timesteps", "first", "last"), [(1000, 1e-4, 0.02), (500, 2e-4, 0.04), (4000, 2.5e-5, 0.005)])
def test_linear_beta_is_that_of_ddpm(timesteps: int, first: float, last: float) -> None:
    """With other numbers of steps it ends at about the same noise."""
    process = VariancePreserving.from_config(DiffusionConfig(schedule="linear_beta", timesteps=timesteps))
    np.testing.assert_allclose(process.betas, np.linspace(first, last, timesteps), rtol=1e-8)
    assert process.logsnr_min == pytest.approx(-10.1, abs=0.2)


@given(logsnr=st.lists(st.floats(-30, 30), min_size=1, max_size=20).map(torch.tensor))
def test_alpha_and_sigma_preserve_variance_at_their_log_snr(logsnr: torch.Tensor) -> None:
    a, s = alpha_sigma(logsnr)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a))
    torch.testing.assert_close(2 * (a.log() - s.log()), logsnr, rtol=1e-5, atol=1e-5)


LINEAR_BETA = "linear_beta fixes the log-SNR range: drop logsnr_min, logsnr_max, logsnr_shift"


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"schedule": "linear_beta", "logsnr_min": 0}, LINEAR_BETA),
        ({"schedule": "linear_beta", "logsnr_shift": -1}, LINEAR_BETA),
        (
            {"logsnr_min": 0, "logsnr_max": -5},
            "logsnr_min must be below logsnr_max: they are 0 and -5, the shift included",
        ),
        (
            {"logsnr_min": 5, "logsnr_max": 0},
            "logsnr_min must be below logsnr_max: they are 5 and 0, the shift included",
        ),
        (
            {"logsnr_max": 5, "logsnr_shift": 20},
            "logsnr_min must be below logsnr_max: they are 10 and 5, the shift included",
        ),
        ({"logsnr_min": math.nan}, "logsnr_min: got NaN; must be null or a number >= -100 and <= 100"),
        ({"timesteps": 1}, "timesteps: got 1; must be an integer >= 10 and <= 100000"),
        ({"prediction": "x0"}, 'prediction: got "x0"; must be epsilon, v_prediction or sample'),
        ({"weighting": "minsnr"}, 'weighting: got "minsnr"; must be elbo, simple or min_snr; did you mean min_snr?'),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        parse(DiffusionConfig, tree, where="run.yaml")
    assert str(error.value) == f"run.yaml: {line}"
