"""The memory that a run will need, computed before it starts."""

from __future__ import annotations

import torch
from torch import nn

from cdt.engine.config import EngineConfig, bucket_size
from cdt.engine.torch_private import address

_ADAM_BYTES = 8  # two fp32 moments
_PREFETCHED = 50_000_000
"""Weights that DeepSpeed prefetches at stage 3 by default."""


def activation_bytes(network: nn.Module, shape: tuple[int, int, int], batch: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps for the backward pass of one micro-batch; the network is on the meta device.

    A tensor kept by several operations counts once; weights and buffers do not count.
    """
    known = {address(tensor.untyped_storage()) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if address(storage) not in known:
            saved[address(storage)] = storage
        return tensor

    x = torch.zeros(batch, *shape, device="meta", dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, torch.zeros(batch, device="meta"))
    return sum(storage.nbytes() for storage in saved.values())


def state_bytes(parameters: int, trained: int, engine: EngineConfig, world: int) -> dict[str, float]:
    """Bytes per rank of weights, gradients, optimiser (fp32 master and moments) and EMA under a ZeRO stage.

    Rajbhandari et al., "ZeRO", SC 2020, figure 1; the EMA is always sharded over the ranks. "update" is the
    temporary copies of AdamW and DeepSpeed; the buckets hold gradients before they are sharded, and gathered weights;
    all as measured (tools/bench/memory.py).
    ``trained``: how many of the parameters are trained; fp32 values of the others are kept like the EMA.
    """
    low = 2 if engine.precision == "bf16" else 4
    stage, bucket = engine.zero_stage, min(trained, bucket_size(engine, trained))
    return {
        "weights": low * parameters / (world if stage >= 3 else 1),
        "gradients": low * trained / (world if stage >= 2 else 1),
        "optimiser": _optimiser_bytes(trained, engine, world),
        "bucket": low * {0: 0, 1: 0, 2: min(bucket, trained - trained / world), 3: bucket}[stage],
        "gathered": low * (parameters + min(parameters, _PREFETCHED)) if stage == 3 and world > 1 else 0,
        "update": 4 * trained * {0: 1, 1: 1 / world, 2: 1 / world, 3: 1.5 / world}[stage],
        "EMA": 4 * parameters / world,
        "probe": 4 * parameters / (world if stage >= 3 else 1),
    }


def peak_bytes(memory: dict[str, float], engine: EngineConfig) -> float:
    """The most memory in use at once: activations, the update and the probe follow each other.

    Gradients replace activations, and exist beside them only from the second micro-batch on. DeepSpeed's stage 3
    allocates separate memory for gradients and keeps it.
    """
    gradients, lasting = memory["gradients"] + memory["bucket"], engine.zero_stage == 3
    passing = {
        "activations": memory["activations"] + memory["gathered"] + gradients * (lasting or engine.accumulation > 1),
        "update": gradients + memory["update"],
        "probe": memory["probe"] + gradients * lasting,
    }
    staying = memory.keys() - {*passing, "gradients", "bucket", "gathered"}
    return sum(memory[name] for name in staying) + max(passing.values())


def least_bytes(parameters: int, trained: int, engine: EngineConfig, world: int) -> float:
    """Bytes without which a rank cannot begin: the whole network in fp32 as it is built, then what stays all the time.

    Less what raw options of DeepSpeed may keep elsewhere.
    """
    memory = state_bytes(parameters, trained, engine, world)
    zero = engine.deepspeed.get("zero_optimization", {})
    offloads = any("offload" in name for name in zero)
    return max(4 * parameters, 0 if offloads else memory["weights"] + memory["optimiser"] + memory["EMA"])


def copies_bytes(parameters: int, trained: int, engine: EngineConfig, world: int) -> float:
    """Bytes of CPU memory on the first rank for the copies that are written during training; less on the others.

    It holds its part of DeepSpeed's state, and the whole weights and averages for safetensors.
    """
    low = 2 if engine.precision == "bf16" else 4
    weights = low * parameters / (world if engine.zero_stage >= 3 else 1)
    return weights + _optimiser_bytes(trained, engine, world) + 2 * 4 * parameters


def _optimiser_bytes(trained: int, engine: EngineConfig, world: int) -> float:
    master = 4 if engine.precision == "bf16" or engine.zero_stage > 0 else 0
    return (master + _ADAM_BYTES) * trained / (world if engine.zero_stage >= 1 else 1)
