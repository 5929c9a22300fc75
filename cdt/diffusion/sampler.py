"""Drawing samples with diffusers' schedulers; the noise of sample k depends on (seed, k) alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdt.condition import Condition
from cdt.diffusion.config import SamplerConfig
from cdt.diffusion.loss import evaluate
from cdt.diffusion.process import Process

QUANTILE_LIMIT = 2**24
"""Most elements of a batch that torch.quantile takes; the schedulers clip x0 through it."""
BATCH = 250
"""Samples that are drawn at once, unless the caller says otherwise."""


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


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn: built once, used for grids, generated shares, replay, runs and evaluation."""

    config: SamplerConfig
    process: Process
    shape: tuple[int, int, int]
    """[C, H, W]"""
    bounded: bool = True
    """Whether samples are pixels in [-1, 1], and clipped to that (``cdt.data.format.header.is_bounded``)."""

    def check(self) -> None:
        """Raises InputError unless the solver samples along the path, correctly with ``steps`` steps."""
        self.process.check_sampler(self.config.name, self.config.steps)

    def draw(
        self,
        network: nn.Module,
        count: int,
        *,
        seed: int,
        first: int = 0,
        conditions: Condition | None = None,
        batch_size: int = BATCH,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Samples ``first`` to ``first + count - 1`` of ``seed``: [count, C, H, W], float32 on the CPU.

        ``network`` is on ``device`` and draws in evaluation mode. ``conditions`` are those of the samples [count].
        Sample k is the same, up to rounding, whatever the count and the batch size.
        """
        batch_size = min(batch_size, max(1, QUANTILE_LIMIT // math.prod(self.shape)))
        samples = torch.empty(count, *self.shape)
        was_training = network.training
        network.eval()
        try:
            for start in range(0, count, batch_size):
                chosen = slice(start, min(start + batch_size, count))
                seeds = [sample_seed(seed, first + k) for k in range(chosen.start, chosen.stop)]
                condition = None if conditions is None else conditions.of(chosen).to(torch.device(device))
                drawn = self._draw(network, seeds, condition, device)
                samples[chosen] = drawn.clamp(-1, 1) if self.bounded else drawn
        finally:
            network.train(was_training)
        return samples

    @torch.no_grad()
    def _draw(
        self, network: nn.Module, seeds: Sequence[int], condition: Condition | None, device: str | torch.device
    ) -> Tensor:
        """One batch [B, C, H, W], step by step as diffusers' DDPMPipeline does it: exports give the same images."""
        # Schedulers are stateful: a fresh one per batch.
        scheduler: Any = self.process.scheduler(self.config.name, self.config.steps, bounded=self.bounded)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters  # UniPC's does not
        noise = {"generator": generators} if takes_generator else {}
        x = torch.cat([torch.randn(1, *self.shape, generator=generator) for generator in generators]).to(device)
        x = self.process.sampling_start(x)
        for t in scheduler.timesteps:
            output = evaluate(network, *self.process.sampling_input(x, t), condition)
            x = scheduler.step(output, t, x, **noise).prev_sample
        return x
