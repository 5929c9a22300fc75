"""The small network that two ranks train, its batches, and figures that compare two such networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdt.checkpoints import checkpoint
from cdt.checkpoints.saving import Saver
from cdt.data.stream import Batch, StreamState
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.noise import normals
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, Fragment
from cdt.engine.ranks import Ranks
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig
from cdt.training.schedule import TrainConfig
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

SHAPE = (1, 8, 8)
STEPS = 20
TRAIN = TrainConfig(batch_size=8, warm_steps=STEPS, dual_steps=0, lr=2e-3, lr_warmup_steps=5, ema_decay=0.9)
DIFFUSION = Diffusion.from_config(DiffusionConfig())
WINDOWS = np.array([10.0, 0.0])
SEED = 5

CASES = {
    f"stage {stage}, {precision}{', two micro-batches' * (accumulation - 1)}": (stage, precision, accumulation)
    for accumulation, stages, precisions in ((1, (0, 1, 2, 3), ("fp32", "bf16")), (2, (2,), ("fp32",)))
    for stage in stages
    for precision in precisions
}


class Scaled(nn.Module):
    """A small network with one weight that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network(DiTConfig(patch=4, width=32, depth=1, heads=2), SHAPE)
        self.gain = nn.Parameter(torch.tensor([1.51, 0.49, 1.26]), requires_grad=False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.inner(x, timestep) * self.gain.sum().to(x.dtype)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Scaled()


def batch_at(step: int, rank: int, world: int) -> Batch:
    """This rank's part of a made-up global batch; all its fields matter to the step."""
    B = TRAIN.batch_size
    positions = torch.arange(step * B, (step + 1) * B)[rank * B // world : (rank + 1) * B // world]
    return Batch(
        images=normals(99, positions, SHAPE) / 2,
        positions=positions,
        streams=positions % 3,
        cells=positions % 2,
        weights=0.5 + (positions % 4).float(),
        rows=positions,
    )


class Figures(NamedTuple):
    losses: list[float]
    """By step, of this rank's batches."""
    sums: np.ndarray
    """Statistics of the period, as ``PeriodSums`` has them."""


def train(engine: Any, ranks: Ranks, first: int, end: int, after: Callable[[int], None]) -> Figures:
    """Steps ``first`` to ``end`` on this rank's batches: the losses, and the statistics of the period."""
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    losses = []
    for step in range(first, end):
        batch = batch_at(step, ranks.rank, ranks.world)
        rate = TRAIN.learning_rate(step)
        loss = train_step(engine, DIFFUSION, batch, sums, learning_rate=rate, seed=SEED, batch_size=TRAIN.batch_size)
        losses.append(loss.item())
        after(step)
    return Figures(losses, sums.take())


def whole(engine: Engine, fragments: dict[str, Fragment] | None = None) -> dict[str, Tensor]:
    fragments = engine.fragments() if fragments is None else fragments
    return {name: engine.gather(name, fragment) for name, fragment in fragments.items()}


def distance(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Relative L2 over all weights together."""
    assert list(weights) == list(others)
    one, other = (torch.cat([weight.double().flatten() for weight in w.values()]) for w in (weights, others))
    return float((one - other).norm() / other.norm())


def same(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return set(weights) == set(others) and all(torch.equal(weights[name], others[name]) for name in weights)


def uncovered(engine: Engine, fragments: dict[str, Fragment], ranks: Ranks) -> list[str]:
    """Weights whose elements the ranks do not hold exactly once, or not as fp32 without gradients."""
    pieces: list[Any] = [None] * ranks.world
    dist.all_gather_object(pieces, {name: (f.start, f.values.numel()) for name, f in fragments.items()})
    wrong = []
    for name, weight in build().named_parameters():
        held = np.zeros(weight.numel(), dtype=int)
        for start, count in (piece[name] for piece in pieces):
            held[start : start + count] += 1
        values = fragments[name].values
        if (held != 1).any() or values.dtype != torch.float32 or values.requires_grad or values.dim() != 1:
            wrong.append(name)
    return wrong


def forward_error(engine: Engine, fragments: dict[str, Fragment]) -> float:
    """The network with these weights against a plain one that has them, relative."""
    x, timestep = normals(7, torch.arange(4), SHAPE), torch.tensor([0.0, 10.5, 500.0, 999.0])
    plain = build()
    plain.load_state_dict(whole(engine, fragments))
    with engine.network_with(fragments) as network:
        out = network(x, timestep)
    with torch.no_grad():
        expected = plain.eval()(x, timestep)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    return float((out - expected).norm() / expected.norm())


def state_at(step: int, ranks: Ranks) -> checkpoint.TrainState:
    stream = StreamState(step, {"base": 8 * step, "constraint a": 3}, [(0, [0.0]), (step + 4, [0.25])])
    return checkpoint.TrainState(step, ranks.world, 9, stream, loss=1 / 3)


def config_of(case: str) -> EngineConfig:
    stage, precision, accumulation = CASES[case]
    return EngineConfig.model_validate({"zero_stage": stage, "precision": precision, "accumulation": accumulation})


def steps_of(config: EngineConfig) -> int:
    return STEPS if config.precision == "fp32" else STEPS // 4


def save(folder: Path, step: int, engine: Engine, ema: Ema, ranks: Ranks) -> None:
    """All of it before it returns."""
    saver = Saver(folder, engine, ema, ranks)
    try:
        saver.begin(state_at(step, ranks))
        saver.finish()
    finally:
        saver.close()
