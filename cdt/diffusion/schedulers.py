"""The noise process of a pipeline of diffusers, from its scheduler's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cdt.diffusion.config import DiffusionConfig
from cdt.errors import InputError
from cdt.records import OBJECT, read_record

SETTINGS = "scheduler_config.json"
MAPPED = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""The schedulers of variance-preserving processes in discrete time: their betas say all."""


def read_scheduler(directory: Path) -> DiffusionConfig:
    """The process that the scheduler in ``directory`` belongs to: its betas, timesteps and prediction type.

    Raises InputError where there is none, and where it cannot be mapped.
    """
    path = directory / SETTINGS
    try:
        settings = read_record(path, OBJECT)
    except InputError as error:
        raise InputError(f"init: {path} is no scheduler of diffusers: {error}") from error
    if "_class_name" not in settings:
        raise InputError(f"init: {path} is no scheduler of diffusers: it has no _class_name")
    name = settings["_class_name"]
    if reason := _unsuitable(name, settings):
        raise InputError(f"init: the scheduler in {directory} cannot be mapped: {reason}")
    names = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
    tree = {
        "schedule": "betas",
        "betas": {name: settings[name] for name in names if settings.get(name) is not None},
        "timesteps": settings.get("num_train_timesteps", 1000),
        "prediction": settings.get("prediction_type", "epsilon"),
    }
    try:
        return DiffusionConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"init: the scheduler in {directory} cannot be mapped: {where}: {first['msg']}") from error


def _unsuitable(name: object, settings: dict[str, Any]) -> str | None:
    if name not in MAPPED:
        return f"it is a {str(name)[:100]}; these can be: {', '.join(MAPPED)}"
    if settings.get("rescale_betas_zero_snr"):
        return "rescale_betas_zero_snr leaves no signal at the last timestep, where log-SNR is not finite"
    if settings.get("use_flow_sigmas"):
        return "its sigmas are those of flow matching, not of betas"
    return None
