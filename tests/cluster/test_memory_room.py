"""Networks that no machine can hold are refused, and those that one can are not."""

from __future__ import annotations

from typing import Any

import pytest
from node_answers import answer

from cdt.cluster.memory_room import check_memory
from cdt.engine.config import EngineConfig
from cdt.errors import InputError

GB = 10**9
H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"


def engine(**settings: Any) -> EngineConfig:
    return EngineConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "world", "most"),
    [
        ({"zero_stage": 0}, 1, 16e9 / 16),  # weights, two moments, averages: 4 bytes each
        ({"zero_stage": 1}, 1, 16e9 / 20),  # and a master copy
        ({"zero_stage": 1}, 2, 16e9 / (2 * 4 + 16)),  # of which all but the weights is shared
        ({"zero_stage": 3}, 4, 16e9 / (4 * 5)),  # 4 + 16 bytes shared, and each has its quarter
        ({"zero_stage": 3}, 16, 16e9 / (16 * 4)),  # each builds the whole first
    ],
)
def test_workers_share_the_memory_of_their_machine(settings: dict[str, Any], world: int, most: float) -> None:
    machine = [answer("a", memory={"all": 16 * GB, "free": 0}, gpus=[])]
    fits = int(most * 0.999)
    check_memory(fits, fits, engine(**settings), world, machine, on_gpus=False)
    with pytest.raises(
        InputError,
        match=r"^network: its [\d,]+ weights cannot fit: \d+ workers? would .* and the largest machine has 16\.0 GB",
    ):
        check_memory(int(most * 1.001), int(most * 1.001), engine(**settings), world, machine, on_gpus=False)


def test_on_several_machines_each_worker_must_fit_on_one() -> None:
    small, large = (answer(name, memory={"all": size * GB, "free": 0}) for name, size in (("a", 16), ("b", 64)))
    check_memory(3 * GB, 3 * GB, engine(), 2, [small, large], on_gpus=False)
    with pytest.raises(InputError, match=r"1 worker would need 96\.0 GB of memory .* largest machine has 64\.0 GB"):
        check_memory(8 * GB, 8 * GB, engine(), 2, [small, large], on_gpus=False)


def test_the_memory_of_gpus() -> None:
    machine = [answer("a", memory={"all": 1000 * GB, "free": 0}, gpus=[H100])]
    check_memory(4 * GB, 4 * GB, engine(), 1, machine, on_gpus=True)
    with pytest.raises(InputError) as caught:
        check_memory(5 * GB, 5 * GB, engine(), 1, machine, on_gpus=True)
    assert str(caught.value) == (
        "network: its 5,000,000,000 weights cannot fit: 1 worker would need 100.0 GB of GPU memory even without "
        "gradients and activations, and the largest machine has 85.5 GB: make it smaller"
    )
    check_memory(5 * GB, 5 * GB, engine(), 1, machine, on_gpus=False)
    check_memory(18 * GB, 10**6, engine(), 8, machine, on_gpus=True)
    with pytest.raises(InputError, match=r"would need 1,200\.0 GB of memory"):
        check_memory(300 * GB, 300 * GB, engine(zero_stage=3), 64, machine, on_gpus=True)


def test_what_raw_options_keep_elsewhere_does_not_count() -> None:
    machine = [answer("a", memory={"all": 10**12, "free": 0}, gpus=[H100])]
    moved = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    check_memory(5 * GB, 5 * GB, engine(deepspeed=moved), 1, machine, on_gpus=True)


def test_machines_that_do_not_say_what_they_have() -> None:
    check_memory(10**12, 10**12, engine(), 1, [answer("a", memory={}, gpus=["odd"])], on_gpus=True)
