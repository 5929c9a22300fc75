"""The formulas of tools/scale_model.py against cases that can be done by hand."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def model() -> Any:
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("scale_model")
    sys.path.remove(str(TOOLS))


def free(model: Any, **values: float) -> Any:
    """Everything that takes time takes none, but what is given."""
    nothing = {each.name: 0.0 for each in dataclasses.fields(model.Assumptions) if each.name not in model.CHOSEN}
    rates = dict.fromkeys(model.RATES, 1e30)
    return model.Assumptions(**{**nothing, **rates, "gpus_per_node": 8, **values})


def test_a_ring_of_two_and_one_of_many(model: Any) -> None:
    """2 (n - 1) / n of the bytes: one of two moves each of them once, one of many twice."""
    a = free(model, inside=100.0, gpus_per_node=1000)
    assert model.reduced(a, 1, 100) == 0
    assert model.reduced(a, 2, 100) == pytest.approx(1)
    assert model.reduced(a, 1000, 100) == pytest.approx(2 * 0.999)
    assert model.gathered(a, 2, 100) == pytest.approx(0.5)


def test_between_nodes_each_gpu_carries_its_part(model: Any) -> None:
    a = free(model, between=100.0)
    assert model.reduced(a, 8, 800) == pytest.approx(0)
    assert model.reduced(a, 16, 800) == pytest.approx(1)
    hops = free(model, inside_latency=1.0, between_latency=100.0)
    assert model.reduced(hops, 4096, 0) == 2 * (3 * 1 + 9 * 100)


def test_a_batch_is_divided_and_the_fixed_part_is_not(model: Any) -> None:
    a = free(model, sample_s=0.5, fixed_s=3.0, batch=64)
    assert [model.step(a, N) for N in (1, 2, 64)] == [35, 19, 3.5]


def test_many_constraints_cost_the_coordinator_and_the_network_and_no_more_draws(model: Any) -> None:
    a = free(model, probe_s=1.0, draws=256, draws_limit=8192)
    assert [model.probed(a, 8, m) for m in (1, 32, 33, 100_000)] == [32, 1024, 1024, 1024]
    assert model.probed(a, 4096, 1) == 1, "ranks without draws run along"
    assert model.decided(free(model, dual_s=1e-6), 8, 100_000) == pytest.approx(0.1)
    assert model.decided(free(model, sent_bytes=10.0, actor=1e6), 8, 100_000) == pytest.approx(1)
    assert model.decided(free(model, told_bytes=10.0, between=1e6), 8, 100_000) == pytest.approx(3)


def test_a_save_is_as_long_as_its_slowest_part(model: Any) -> None:
    base = {"parameters": 1e9, "low_bytes": 2.0, "tensors": 0.0}
    assert model.checkpoint(free(model, **base, node_storage=1e9), 8) == pytest.approx(12 + 10 + 22)
    assert model.checkpoint(free(model, **base, storage=1e9), 4096) == pytest.approx(12)
    hashing = free(model, **base, hash_s=1e-9, hash_threads=11)
    assert model.checkpoint(hashing, 8) == pytest.approx(4), "one file of 4 bytes a weight is one thread's"
    assert model.checkpoint(dataclasses.replace(hashing, hash_threads=2), 8) == pytest.approx(11)


def test_what_a_run_takes_is_the_sum_and_costs_by_the_hour(model: Any) -> None:
    a = free(model, fixed_s=3.6, steps=1000, period=10, checkpoints=0, price=2.0)
    assert model.hours(a, 8, 1) == pytest.approx(1)
    assert model.dollars(a, 8, 1) == pytest.approx(16)
    assert model.hours(dataclasses.replace(a, ray_s=3600), 8, 1) == pytest.approx(2)


def test_the_dominant_assumption_is_that_which_hurts_most(model: Any) -> None:
    few = free(model, fixed_s=1.0, sample_s=0.1, batch=8)
    assert model.dominant(few, 1, 1) == ("fixed_s", pytest.approx(1 / 1.8))
    slow = free(model, fixed_s=1.0, between=1e6, parameters=1e8, low_bytes=2)
    assert model.dominant(slow, 64, 1)[0] == "between", "a rate is worse when it is lower"


def test_pieces_of_a_machine_make_its_whole_steps(
    model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine whose step takes 10 ms and 1 ms a sample, 2 ms of it the update."""
    case = {"batch": 32, "parameters": 1000, "update_s": 0.002, "run 1": 0.042, "run 2": 0.0555}
    case |= {"alone 8": 0.018, "alone 16": 0.026}
    pieces = {"case": case, "collectives": {"bytes_per_s": 4e6, "latency_s": 0.001}, "repeats": 1}
    pieces |= {"build_s": 1e-8, "dual_s": 1e-7, "hash_s": 1e-9, "all": [{"case": case}]}
    assert model.step(model.of_this_machine(pieces, "case", 1), 1) == pytest.approx(0.042)
    # 26 ms less half of the update; 4,000 bytes reduced and half of that gathered; latencies likewise
    assert model.step(model.of_this_machine(pieces, "case", 2), 2) == pytest.approx(0.025 + 0.0015 + 0.0015)
    file = tmp_path / "pieces.json"
    file.write_text(json.dumps(pieces))
    monkeypatch.setattr(sys, "argv", ["scale_model.py", "--measured", str(file)])
    model.main()
    said = capsys.readouterr().out
    assert "0.50" in said
    assert "sample_s" in said
