"""The solvers that samples are drawn with, by name. No torch: configurations and the command list them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

SAMPLERS = {
    "ddim": "DDIMScheduler",  # arXiv 2010.02502
    "ddpm": "DDPMScheduler",  # arXiv 2006.11239
    "dpmpp_2m": "DPMSolverMultistepScheduler",  # arXiv 2211.01095
    "unipc": "UniPCMultistepScheduler",  # arXiv 2302.04867
}
"""Sampler to the scheduler class of diffusers. All are built alike, so that in an exported pipeline one can be
exchanged for another by ``from_config``."""

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
