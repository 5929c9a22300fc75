"""One training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cdt.constraints import Penalty
from cdt.data.stream import Batch
from cdt.diffusion.loss import Diffusion, Network, noise
from cdt.diffusion.noise import normals, stratified
from cdt.origin.answers import StoredTeacher
from cdt.origin.teacher import Teacher
from cdt.training.penalty import penalised
from cdt.training.sums import PeriodSums


class Trainable(Protocol):
    """What a step needs of an engine."""

    @property
    def network(self) -> Network: ...

    @property
    def accumulation(self) -> int:
        """Micro-batches per step."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the forward pass."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> None:
        """Counts one micro-batch; updates the weights at the last one of the batch."""
        ...


def train_step(
    engine: Trainable,
    diffusion: Diffusion,
    batch: Batch,
    sums: PeriodSums,
    teacher: Teacher | StoredTeacher | None = None,
    *,
    learning_rate: float,
    seed: int,
    batch_size: int,
    penalties: Sequence[Penalty] = (),
) -> Tensor:
    """Forward, backward and update on this rank's share of a global batch; the mean loss, on the device.

    Replayed samples regress onto what ``teacher`` predicts, all others onto their noise. Penalties have the multipliers
    that the batch brings.
    """
    total = torch.zeros((), device=batch.images.device)
    for micro in batch.split(engine.accumulation):
        u = stratified(seed, micro.positions, batch_size)
        eps = normals(seed, micro.positions, tuple(micro.images.shape[1:]))
        u, eps, target = (u, eps, noise) if teacher is None else teacher.lesson(micro, u, eps)
        losses = diffusion.losses(
            engine.network, micro.images, u, eps, engine.dtype, target, micro.condition, keep_x0=bool(penalties)
        )
        primal = losses.primal
        if losses.x0 is not None and micro.penalties is not None:
            primal = penalised(primal, penalties, micro.penalties, losses.x0, losses.logsnr)
        loss = (micro.weights * primal).mean()
        engine.backward(loss)
        engine.step(learning_rate)
        sums.add(micro, losses)
        total += loss.detach() / engine.accumulation
    return total
