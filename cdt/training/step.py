"""One training step."""

from __future__ import annotations

import torch
from torch import Tensor

from cdt.data.stream import Batch
from cdt.diffusion.loss import Diffusion, noise
from cdt.diffusion.noise import normals, stratified
from cdt.engine.engine import Engine
from cdt.origin.answers import StoredTeacher
from cdt.origin.teacher import Teacher
from cdt.training.sums import PeriodSums


def train_step(
    engine: Engine,
    diffusion: Diffusion,
    batch: Batch,
    sums: PeriodSums,
    teacher: Teacher | StoredTeacher | None = None,
    *,
    learning_rate: float,
    seed: int,
    batch_size: int,
) -> Tensor:
    """Forward, backward and update on this rank's share of a global batch; the mean primal loss, on the device.

    Replayed samples regress onto what ``teacher`` predicts, all others onto their noise.
    """
    total = torch.zeros((), device=batch.images.device)
    for micro in batch.split(engine.accumulation):
        u = stratified(seed, micro.positions, batch_size)
        eps = normals(seed, micro.positions, tuple(micro.images.shape[1:]))
        u, eps, target = (u, eps, noise) if teacher is None else teacher.lesson(micro, u, eps)
        losses = diffusion.losses(engine.network, micro.images, u, eps, engine.dtype, target, micro.condition)
        loss = (micro.weights * losses.primal).mean()
        engine.backward(loss)
        engine.step(learning_rate)
        sums.add(micro, losses)
        total += loss.detach() / engine.accumulation
    return total
