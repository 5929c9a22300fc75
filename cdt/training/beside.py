"""The teacher that a run has beside its engine, if it has one."""

from __future__ import annotations

import torch

from cdt.training.answers import StoredTeacher
from cdt.training.engine import Engine
from cdt.training.job import Prepared
from cdt.training.replay import ReplayConfig
from cdt.training.teacher import Teacher


def teacher_beside(
    engine: Engine, prepared: Prepared, settings: ReplayConfig, shape: tuple[int, int, int], device: torch.device
) -> Teacher | StoredTeacher | None:
    """The pretrained network, or its stored answers, where replayed samples regress onto its predictions."""
    if prepared.origin is None or prepared.replay is None or settings.target == "noise":
        return None
    replayed = torch.as_tensor(prepared.requirements.replayed, device=device)
    if prepared.answers is not None:
        return StoredTeacher(prepared.answers, replayed, prepared.first_replayed)
    dtype = torch.bfloat16 if settings.teacher_precision == "bf16" else torch.float32
    network = engine.beside(prepared.origin.build(shape), dtype)
    return Teacher(network, prepared.origin.process, replayed, dtype, partitioned=engine.partitioned)
