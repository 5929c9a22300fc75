"""Schedulers of diffusers: what they say of the noise process is ours exactly, or a sentence says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from paths import make_scheduler

from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.schedulers import MAPPED, SETTINGS, read_scheduler
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.errors import InputError

# Of NumPy 2, about the way in which diffusers turns a tensor into an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "other ends": {"beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 500},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained": {"trained_betas": np.linspace(0.001, 0.1, 100).tolist(), "num_train_timesteps": 100},
}


def saved(directory: Path, name: str = "DDPMScheduler", **settings: Any) -> Any:
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.save_pretrained(directory)
    return scheduler


@pytest.mark.parametrize("name", BETAS)
def test_alphas_are_those_of_the_scheduler(name: str, tmp_path: Path) -> None:
    """To the rounding of its float32: all that a sampler or a loss takes from it."""
    theirs = saved(tmp_path, **BETAS[name])
    process = VariancePreserving.from_config(read_scheduler(tmp_path))
    assert process.timesteps == len(theirs.betas)
    np.testing.assert_allclose(process.betas, theirs.betas.double(), rtol=2e-6)
    np.testing.assert_allclose(process.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4)


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_schedulers_of_one_process_are_read_alike(name: str, prediction: str, tmp_path: Path) -> None:
    saved(tmp_path, name, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type=prediction)
    process = VariancePreserving.from_config(read_scheduler(tmp_path))
    ddpm = VariancePreserving.from_config(DiffusionConfig(schedule="linear_beta"))
    np.testing.assert_allclose(process.table, ddpm.table, rtol=1e-12)
    assert process.prediction == prediction


def test_what_we_export_comes_back(tmp_path: Path) -> None:
    """The cosine schedule as ``trained_betas``."""
    process = VariancePreserving.from_config(DiffusionConfig(prediction="v_prediction", logsnr_shift=1.0))
    make_scheduler("dpmpp_2m", process, 20).save_pretrained(tmp_path)
    again = VariancePreserving.from_config(read_scheduler(tmp_path))
    np.testing.assert_allclose(again.table, process.table, rtol=1e-9)
    assert again.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            "it is a FlowMatchEulerDiscreteScheduler; these can be: DDPMScheduler,",
        ),
        ("EDMEulerScheduler", {}, "it is a EDMEulerScheduler; these can be: DDPMScheduler,"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr leaves no signal"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "flow matching"),
        ("DDPMScheduler", {"beta_schedule": "laplace"}, "betas.beta_schedule: Input should be 'linear', 'scaled"),
    ],
)
def test_what_cannot_be_mapped_is_told(name: str, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved(tmp_path, name, **settings)
    with pytest.raises(InputError) as caught:
        read_scheduler(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"init: the scheduler in {tmp_path} cannot be mapped: ")
    assert reason in said
    assert "\n" not in said


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_what_is_no_scheduler_is_told(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(InputError, match="is no scheduler of diffusers"):
        read_scheduler(tmp_path)


def test_betas_and_their_schedule_belong_together(tmp_path: Path) -> None:
    saved(tmp_path, **BETAS["trained"])
    config = read_scheduler(tmp_path)
    tree = json.loads(config.model_dump_json())
    for change, reason in (
        ({"timesteps": 50}, "trained_betas has 100 values for 50 timesteps"),
        ({"schedule": "cosine"}, "belong together"),
        ({"betas": None}, "belong together"),
        ({"logsnr_min": -3.0}, "betas fixes the log-SNR range"),
    ):
        with pytest.raises(ValueError, match=reason):
            DiffusionConfig.model_validate(tree | change)
