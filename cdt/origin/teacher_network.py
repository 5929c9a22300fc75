"""The pretrained network that a run starts from, frozen: to learn from, and to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdt.engine.engine import Engine
from cdt.origin.answers import Answers, StoredTeacher
from cdt.origin.config import ReplayConfig
from cdt.origin.pretrained import Pretrained
from cdt.origin.teacher import Teacher


@dataclass(frozen=True)
class ReplayedRows:
    """Where the pretrained model's samples are among all rows, and what was stored about them."""

    cells: Tensor
    """Which cells are replay: [K], bool, on the device."""
    first: int
    """The first row of replay."""
    answers: Answers | None = None
    """The teacher's stored answers, if ``replay.teacher_draws`` asks for them."""


class TeacherNetwork:
    """Partitioned weights stay for the whole run; a full copy on every rank is freed after each use."""

    def __init__(self, engine: Engine, origin: Pretrained, settings: ReplayConfig, shape: tuple[int, int, int]) -> None:
        self._engine, self._origin, self._settings, self._shape = engine, origin, settings, shape
        self._partitioned = engine.partitioned or settings.teacher_offload
        self._kept: dict[torch.dtype, nn.Module] = {}

    def measured_against(self) -> nn.Module:
        """In fp32 and evaluation mode, frozen. If it is partitioned, all ranks must run equally many forwards."""
        return self._network(torch.float32, keep=self._partitioned)

    def teacher(self, replayed: ReplayedRows) -> Teacher | StoredTeacher | None:
        """What training regresses onto at replayed samples: the network, or its stored answers; None for the noise."""
        if self._settings.target == "noise":
            return None
        if replayed.answers is not None:
            return StoredTeacher(replayed.answers, replayed.cells, replayed.first)
        dtype = torch.bfloat16 if self._settings.teacher_precision == "bf16" else torch.float32
        network = self._network(dtype, keep=True)
        return Teacher(network, self._origin.process, replayed.cells, dtype, partitioned=self._partitioned)

    def _network(self, dtype: torch.dtype, *, keep: bool) -> nn.Module:
        if dtype in self._kept:
            return self._kept[dtype]
        whole = self._origin.build(self._shape)
        network = self._engine.frozen(whole, dtype, offload=self._settings.teacher_offload)
        if keep:
            self._kept[dtype] = network
        return network
