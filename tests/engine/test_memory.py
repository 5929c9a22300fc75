from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cdt.engine.config import EngineConfig
from cdt.engine.memory import activation_bytes, copies_bytes, least_bytes, peak_bytes, state_bytes
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig, UNetConfig

P, WORLD = 1000, 4


def total(stage: int, precision: str) -> float:
    engine = EngineConfig.model_validate({"zero_stage": stage, "precision": precision})
    memory = state_bytes(P, P, engine, WORLD)
    return sum(memory[name] for name in ("weights", "gradients", "optimiser"))


def test_mixed_precision_states_are_those_of_the_zero_paper() -> None:
    """Rajbhandari et al., figure 1: 16 P, 4 P + 12 P / N, 2 P + 14 P / N, 16 P / N bytes."""
    assert [total(stage, "bf16") for stage in range(4)] == [
        16 * P,
        4 * P + 12 * P / WORLD,
        2 * P + 14 * P / WORLD,
        16 * P / WORLD,
    ]


def test_fp32_states() -> None:
    """Weights and gradients of 4 bytes; a partitioned optimiser keeps a master copy of its part."""
    assert [total(stage, "fp32") for stage in range(4)] == [
        16 * P,
        8 * P + 12 * P / WORLD,
        4 * P + 16 * P / WORLD,
        20 * P / WORLD,
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_average_is_always_divided_and_the_probe_at_stage_3(precision: str) -> None:
    for stage in range(4):
        memory = state_bytes(P, P, EngineConfig.model_validate({"zero_stage": stage, "precision": precision}), WORLD)
        assert memory["EMA"] == 4 * P / WORLD
        assert memory["probe"] == (4 * P / WORLD if stage == 3 else 4 * P)


def test_the_least_is_the_network_as_it_is_built_or_what_stays() -> None:
    def least(stage: int, world: int, trained: int = P, **raw: object) -> float:
        engine = EngineConfig.model_validate(
            {"zero_stage": stage, "deepspeed": {"zero_optimization": raw} if raw else {}}
        )
        return least_bytes(P, trained, engine, world)

    assert [least(stage, 1) for stage in range(4)] == [16 * P, 20 * P, 20 * P, 20 * P]
    assert [least(stage, 10) for stage in range(4)] == [12.4 * P, 5.6 * P, 5.6 * P, 4 * P]
    assert least(1, 1, trained=0) == 8 * P
    assert least(1, 1, offload_optimizer={"device": "cpu"}) == 4 * P


def test_what_is_not_trained_has_neither_gradients_nor_optimiser() -> None:
    for stage in range(4):
        engine = EngineConfig.model_validate({"zero_stage": stage})
        all_trained, few = state_bytes(P, P, engine, WORLD), state_bytes(P, 10, engine, WORLD)
        for name, size in all_trained.items():
            assert few[name] == pytest.approx(
                size / 100 if name in ("gradients", "bucket", "optimiser", "update") else size
            )


@pytest.mark.parametrize(
    ("millions", "stage", "world", "activations", "measured"),
    [
        (1.26, 3, 1, 187, 228),
        (1.26, 3, 2, 187, 219),
        *((19.97, stage, 1, 185, measured) for stage, measured in enumerate((509, 585, 585, 737))),
        *((19.97, stage, 2, 185, measured) for stage, measured in enumerate((471, 433, 432, 650))),
        *((79.79, stage, 1, 93, measured) for stage, measured in enumerate((1833, 2138, 2138, 2440))),
        *((79.79, stage, 2, 93, measured) for stage, measured in enumerate((1683, 1414, 1339, 1718))),
    ],
)
def test_the_peak_is_that_which_was_measured(
    millions: float, stage: int, world: int, activations: float, measured: float
) -> None:
    """MiB of one of one and of two ranks, in fp32, by tools/bench/memory.py."""
    P, engine = round(millions * 1e6), EngineConfig.model_validate({"zero_stage": stage})
    memory = {**state_bytes(P, P, engine, world), "activations": activations * 2**20}
    assert peak_bytes(memory, engine) / 2**20 == pytest.approx(measured, rel=0.05)


def test_activations_come_beside_gradients_from_a_second_micro_batch_on() -> None:
    memory = dict.fromkeys(("weights", "gradients", "bucket", "update", "probe", "gathered"), 10.0) | {
        "activations": 100
    }

    def peak(stage: int, accumulation: int) -> float:
        return peak_bytes(memory, EngineConfig.model_validate({"zero_stage": stage, "accumulation": accumulation}))

    assert [peak(2, accumulation) for accumulation in (1, 2)] == [120, 140]
    assert peak(3, 1) == 140, "at stage 3 from the first"


def test_a_bucket_of_ones_own_is_counted() -> None:
    def bucket(options: dict[str, int]) -> float:
        engine = EngineConfig.model_validate({"zero_stage": 3, "deepspeed": {"zero_optimization": options}})
        return state_bytes(P, P, engine, WORLD)["bucket"]

    assert bucket({}) == 4 * P
    assert bucket({"reduce_bucket_size": 100}) == 400


class Chain(nn.Module):
    """Two matrices and a sine, whose activations can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden) * torch.sin(hidden)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_of_a_chain(dtype: torch.dtype, size: int) -> None:
    """Kept are x, hidden (twice asked for, once there), sin(hidden) and second(hidden); no weights."""
    with torch.device("meta"):
        network = Chain().to(dtype)
    assert activation_bytes(network, (1, 2, 64), 3, dtype) == 4 * (3 * 2 * 64) * size


@pytest.mark.parametrize("config", [DiTConfig(width=32, depth=2, heads=2), UNetConfig(channels=(8, 16))])
def test_activations_grow_with_the_batch_and_shrink_by_checkpointing(config: DiTConfig | UNetConfig) -> None:
    with torch.device("meta"):
        network, thrifty = (build_network(config, (1, 8, 8), checkpointing=again) for again in (False, True))
    small, large = (activation_bytes(network, (1, 8, 8), batch, torch.float32) for batch in (4, 8))
    assert small > 0
    assert large == 2 * small
    assert activation_bytes(thrifty, (1, 8, 8), 8, torch.float32) < large / 2


def test_copies_for_saves() -> None:
    """Engine's state in its parts, weights and averages whole."""
    assert copies_bytes(P, P, EngineConfig(zero_stage=0), 1) == (4 + 8 + 8) * P
    assert copies_bytes(P, P, EngineConfig(zero_stage=1), 1) == (4 + 12 + 8) * P
    assert copies_bytes(P, P, EngineConfig(zero_stage=3, precision="bf16"), 2) == (1 + 6 + 8) * P
    assert copies_bytes(P, 0, EngineConfig(zero_stage=0), 1) == (4 + 8) * P
