"""The process group as training uses it: this process's rank, sums over all ranks, and values of rank 0."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def collectives(*, gpus: bool) -> str:
    """The backends of the process group: nccl for tensors on GPUs, which gloo would copy through the host."""
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    device: torch.device

    @classmethod
    def current(cls) -> Ranks:
        """From the initialised process group; one accelerator per local rank if there are any."""
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over ranks, in float64, on the host: no device has to wait."""
        tensor = torch.as_tensor(values, dtype=torch.float64).clone()
        dist.all_reduce(tensor)
        return tensor.numpy()

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any_of(self, value: str | None) -> str | None:
        """The value of the first rank that has one, on every rank; None if all are None."""
        values: list[str | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return next((found for found in values if found is not None), None)

    def all_of(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
