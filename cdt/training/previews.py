"""What a run shows of its model after a save: samples, and how much better it knows what it trains on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from cdt.diffusion.sampler import Sampler
from cdt.engine.ranks import Ranks
from cdt.monitor.pictures import image_grid
from cdt.monitor.recorder import Recorder


def sample_grid(network: nn.Module, sampler: Sampler, count: int, seed: int, ranks: Ranks) -> np.ndarray:
    """The samples of every save, from the same noise: a picture [H, W, C] uint8. Every rank draws them all."""
    return image_grid(sampler.draw(network, count, seed=seed, batch_size=count, device=ranks.device))


def record_gaps(recorder: Recorder, step: int, gaps: Mapping[str, tuple[float, float]]) -> None:
    """Loss on held-out minus loss on training samples, and its standard error, by constraint."""
    text = ", ".join(f"{name} {gap:+.3f} (standard error {error:.3f})" for name, (gap, error) in gaps.items())
    recorder.event(step, "held-out gap", f"loss on held-out minus on training samples, nats: {text}")
    recorder.scalars(step, {f"held_out_gap/{name}": gap for name, (gap, _) in gaps.items()})
