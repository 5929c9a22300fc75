"""Drawing samples with diffusers' schedulers; the noise of sample k depends on (seed, k) alone."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdt.diffusion.process import Process
from cdt.errors import InputError

SAMPLERS = {
    "ddim": "DDIMScheduler",  # arXiv 2010.02502
    "ddpm": "DDPMScheduler",  # arXiv 2006.11239
    "dpmpp_2m": "DPMSolverMultistepScheduler",  # arXiv 2211.01095
    "unipc": "UniPCMultistepScheduler",  # arXiv 2302.04867
}
"""Sampler to the scheduler class of diffusers. All are built alike, so that in an exported pipeline one can be
exchanged for another by ``from_config``."""

QUANTILE_LIMIT = 2**24
"""Most elements of a batch that torch.quantile takes; the schedulers clip x0 through it."""


def sample_seed(seed: int, k: int) -> int:
    """Seed of the generator that draws all noise of sample ``k``, 0 <= k < 2^32: 64 bits.

    torch's CPU generator heeds only the low 32 bits of its seed. Here these are a bijection of k for every seed, so no
    two samples of a run share their noise; independent 32-bit hashes would collide by the birthday bound.
    """
    mask = 2**32 - 1
    key = (seed + 0x9E3779B97F4A7C15) % 2**64  # splitmix64 of the seed
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    low = (k ^ key) & mask  # the finaliser of MurmurHash3
    low = (low ^ low >> 16) * 0x85EBCA6B & mask
    low = (low ^ low >> 13) * 0xC2B2AE35 & mask
    return key ^ low ^ low >> 16


def check_steps(sampler: str, steps: int, timesteps: int) -> None:
    """InputError unless diffusers draws correctly with so many steps out of so many timesteps."""

    def fits(n: int) -> bool:
        # "trailing" spacing counts down in floats: rounding can add a step, at timestep -1.
        evenly_spaced = len(np.arange(timesteps, 0, -timesteps / n)) == n
        # DDIMScheduler steps to t - T // n, next time it starts from the rounded t - T / n: up to one timestep apart,
        # which is negligible only against long steps (on Gaussian data the deviation comes out 2 % too large at 30
        # steps of 1,000, 9 % at 120, 115 % at 600).
        consistent = sampler != "ddim" or timesteps % n == 0 or 20 * n <= timesteps
        return evenly_spaced and consistent

    if steps > timesteps:
        raise InputError(f"sampler.steps: {steps} is more than the {timesteps} timesteps of the noise schedule")
    if not fits(steps):
        below = next(n for n in range(steps, 0, -1) if fits(n))
        above = next(n for n in range(steps, timesteps + 1) if fits(n))
        raise InputError(
            f"sampler.steps: {sampler} is inaccurate with {steps} steps over {timesteps} timesteps; "
            f"take {below} or {above}"
        )


def make_scheduler(sampler: str, process: Process, steps: int, *, bounded: bool = True) -> Any:
    """A fresh diffusers scheduler for ``process``, its timesteps set; InputError for unsuitable ``steps``.

    It starts at the last timestep and ends at x0 (DDIM whose steps do not divide the timesteps may end at timestep 0).
    For ``bounded`` data (images; not latents) predictions of x0 are clipped to [-1, 1], without which single samples of
    eps-predictors blow up at the noise end: ``thresholding`` with ``sample_max_value`` 1 does exactly that and, unlike
    ``clip_sample``, all schedulers have it.
    """
    check_steps(sampler, steps, process.timesteps)
    import diffusers  # seconds to import: configurations are read without it

    scheduler = getattr(diffusers, SAMPLERS[sampler])(
        num_train_timesteps=process.timesteps,
        trained_betas=process.betas.tolist(),
        prediction_type=process.prediction,
        timestep_spacing="trailing",
        thresholding=bounded,
        sample_max_value=1.0,
    )
    with warnings.catch_warnings():
        # Of NumPy 2 about the way in which diffusers turns a tensor into an array.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return scheduler


def sample(
    network: nn.Module,
    process: Process,
    shape: tuple[int, int, int],
    count: int,
    *,
    seed: int,
    sampler: str,
    steps: int,
    batch_size: int = 250,
    device: str | torch.device = "cpu",
    first: int = 0,
    bounded: bool = True,
) -> Tensor:
    """Samples ``first`` to ``first + count - 1`` of ``seed``: [count, C, H, W], float32 on the CPU.

    ``bounded`` data (images) are in [-1, 1] and so are their samples; those of latents are as they come.

    ``network`` stands on ``device`` and draws in eval mode. Sample k is the same, up to rounding, whatever the count
    and the batch size.
    """
    batch_size = min(batch_size, max(1, QUANTILE_LIMIT // math.prod(shape)))
    samples = torch.empty(count, *shape)
    was_training = network.training
    network.eval()
    try:
        for start in range(0, count, batch_size):
            seeds = [sample_seed(seed, first + k) for k in range(start, min(start + batch_size, count))]
            # Schedulers are stateful: a fresh one per batch.
            scheduler = make_scheduler(sampler, process, steps, bounded=bounded)
            drawn = _draw(network, scheduler, shape, seeds, device)
            samples[start : start + len(seeds)] = drawn.clamp(-1, 1) if bounded else drawn
    finally:
        network.train(was_training)
    return samples


@torch.no_grad()
def _draw(
    network: nn.Module, scheduler: Any, shape: tuple[int, int, int], seeds: list[int], device: str | torch.device
) -> Tensor:
    """One batch [B, C, H, W], step by step as diffusers' DDPMPipeline does it, so that exports give the same images."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters  # UniPC's does not
    noise = {"generator": generators} if takes_generator else {}
    x = torch.cat([torch.randn(1, *shape, generator=generator) for generator in generators]).to(device)
    for t in scheduler.timesteps:
        timestep = t.to(device, torch.float32).expand(len(x))
        x = scheduler.step(network(x, timestep), t, x, **noise).prev_sample
    return x
