"""The pretrained network beside the engine of a run that starts from one: to learn from, and to measure against."""

from __future__ import annotations

import torch
from torch import nn

from cdt.training.answers import StoredTeacher
from cdt.training.engine import Engine
from cdt.training.job import Prepared
from cdt.training.replay import ReplayConfig
from cdt.training.teacher import Teacher


class Beside:
    """Where no rank holds all of it, it stays for as long as the run; where every rank does, no longer than needed."""

    def __init__(
        self,
        engine: Engine,
        prepared: Prepared,
        settings: ReplayConfig,
        shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._engine, self._prepared, self._settings, self._shape = engine, prepared, settings, shape
        self._partitioned = engine.partitioned or settings.teacher_offload
        self._kept: dict[torch.dtype, nn.Module] = {}
        self.teacher = self._teacher(device)
        """What training asks at replayed samples: the network or its stored answers; None where it asks nothing."""

    def network(self) -> nn.Module:
        """In fp32 and evaluation mode, frozen. Where it is partitioned, all ranks must run equally many forwards."""
        return self._network(torch.float32, keep=self._partitioned)

    def _network(self, dtype: torch.dtype, *, keep: bool) -> nn.Module:
        if dtype in self._kept:
            return self._kept[dtype]
        assert self._prepared.origin is not None
        whole = self._prepared.origin.build(self._shape)
        network = self._engine.beside(whole, dtype, offload=self._settings.teacher_offload)
        if keep:
            self._kept[dtype] = network
        return network

    def _teacher(self, device: torch.device) -> Teacher | StoredTeacher | None:
        prepared, settings = self._prepared, self._settings
        if prepared.origin is None or prepared.replay is None or settings.target == "noise":
            return None
        replayed = torch.as_tensor(prepared.requirements.replayed, device=device)
        if prepared.answers is not None:
            return StoredTeacher(prepared.answers, replayed, prepared.first_replayed)
        dtype = torch.bfloat16 if settings.teacher_precision == "bf16" else torch.float32
        network = self._network(dtype, keep=True)
        return Teacher(network, prepared.origin.process, replayed, dtype, partitioned=self._partitioned)
