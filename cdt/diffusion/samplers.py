"""The solvers that samples are drawn with, by name. No torch: configurations and the command list them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

VARIANCE_PRESERVING = {
    "ddim": "DDIMScheduler",  # arXiv 2010.02502
    "ddpm": "DDPMScheduler",  # arXiv 2006.11239
    "dpmpp_2m": "DPMSolverMultistepScheduler",  # arXiv 2211.01095
    "unipc": "UniPCMultistepScheduler",  # arXiv 2302.04867
}
"""Sampler to the scheduler class of diffusers, along the variance-preserving path. All are built alike, so that in an
exported pipeline one can be exchanged for another by ``from_config``."""

SAMPLERS = {**VARIANCE_PRESERVING}
"""Those of all paths. Each process says which are its own."""

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
