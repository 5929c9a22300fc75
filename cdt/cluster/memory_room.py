"""Networks that cannot fit into the memory of the machines, refused before one of them is built."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ray
import torch

from cdt.cluster.nodes import Answer
from cdt.cluster.session import cluster_slots
from cdt.engine.config import EngineConfig
from cdt.engine.memory import least_bytes
from cdt.errors import InputError

GB = 1e9


def check_memory(
    parameters: int, trained: int, engine: EngineConfig, world: int, answers: Sequence[Answer], *, on_gpus: bool
) -> None:
    """Raises InputError if even without gradients and activations a network does not fit, on the largest node.

    ``parameters``, of which ``trained`` are trained, on ``world`` workers; ``answers`` of all nodes.
    """
    least = least_bytes(parameters, trained, engine, world)
    host = max((answer.facts["memory"].get("all", math.inf) for answer in answers), default=math.inf)
    # Workers of one machine share its memory; on several ones, each must fit somewhere.
    together = 1 if on_gpus or len(answers) > 1 else world
    # Every worker builds the network in the memory of its node, also for an accelerator.
    _check(parameters, 4 * parameters if on_gpus else together * least, host, together, "memory")
    if on_gpus:
        device = max((_bytes(gpu) for answer in answers for gpu in answer.facts["gpus"]), default=math.inf)
        _check(parameters, least, device, 1, "GPU memory")


def train_on_gpus() -> bool:
    """Whether workers get accelerators: those of the connected cluster, else of this machine."""
    return cluster_slots().kind == "GPU" if ray.is_initialized() else torch.cuda.is_available()


def _check(parameters: int, needed: float, there: float, workers: int, what: str) -> None:
    if needed > there:
        raise InputError(
            f"network: its {parameters:,} weights cannot fit: {workers} worker{'s' * (workers > 1)} would need "
            f"{needed / GB:,.1f} GB of {what} even without gradients and activations, and the largest machine has "
            f"{there / GB:,.1f} GB: make it smaller"
        )


def _bytes(gpu: str) -> float:
    """Of a row of nvidia-smi: name, memory, driver."""
    for part in gpu.split(", "):
        if part.endswith(" MiB"):
            return float(part.removesuffix(" MiB")) * 2**20
    return math.inf
