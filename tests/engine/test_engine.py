"""Engine and training step on two ranks, at each ZeRO stage and precision, against plain PyTorch in one process."""

from __future__ import annotations

import math
import sys

import pytest
from engine_scenarios import ENGINE, OFF_LOADED
from pydantic import ValidationError
from real_ranks import RealRanks
from small_engine import CASES, build

from cdt.engine.config import EngineConfig, bucket_size, deepspeed_options
from cdt.errors import InputError
from cdt.settings import apply_overrides, parse

FP32 = [name for name, (_, precision, _) in CASES.items() if precision == "fp32"]


@pytest.mark.parametrize("case", CASES)
def test_the_ranks_hold_every_weight_once_in_fp32(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.uncovered == []


@pytest.mark.parametrize("case", CASES)
def test_gathered_weights_are_the_masters(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.rounded
        assert told.finer_than_bf16 > 0.9


@pytest.mark.parametrize("case", FP32)
def test_two_ranks_train_like_one_process(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.distance_from_plain < 1e-5
        assert told.loss_error < 1e-5
        assert told.sums_error < 1e-5
        assert told.norm_error < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_gradient_norms_are_finite_and_the_same_on_all_ranks(real_ranks: RealRanks, case: str) -> None:
    one, other = (told.norms for told in real_ranks(ENGINE[case]))
    assert all(math.isfinite(norm) and norm > 0 for norm in one)
    assert one == other


@pytest.mark.parametrize("case", CASES)
def test_a_network_with_other_weights_is_that_network(real_ranks: RealRanks, case: str) -> None:
    """Asked for in mid-training and again with others: at stage 3 it is one network whose weights change."""
    for told in real_ranks(ENGINE[case]):
        assert max(told.forward_errors) < 1e-6
        assert told.untouched


@pytest.mark.parametrize("case", CASES)
def test_training_begins_from_the_given_weights_and_not_from_rounded_ones(real_ranks: RealRanks, case: str) -> None:
    """DeepSpeed rounds to bf16 first: .01 to .04 nats from a pretrained model of 64 dimensions."""
    for told in real_ranks(ENGINE[case]):
        assert told.begins_exact


@pytest.mark.parametrize("case", CASES)
def test_weights_are_written_before_they_are_gathered(real_ranks: RealRanks, case: str) -> None:
    """At stage 3 DeepSpeed gathers on a stream that does not wait for the one that wrote."""
    for told in real_ranks(ENGINE[case]):
        assert told.finished_writes == (CASES[case][0] == 3)


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_network_stands_beside_the_trained_one(real_ranks: RealRanks, case: str) -> None:
    """Also off-loaded, at every stage and precision: it answers as it did alone, and no training step touches it."""
    stage, precision, _ = CASES[case]
    whole = sum(weight.numel() for weight in build().parameters())
    for told in real_ranks(ENGINE[case]):
        assert max(told.beside_errors) < (1e-6 if precision == "fp32" else 0.02)
        assert told.beside_unchanged
        # Where it is divided a rank holds nothing between two forwards but its part, which is not among the
        # parameters' values.
        assert told.beside_holds == [0 if stage == 3 else whole, 0]


@pytest.mark.parametrize("case", CASES)
def test_an_update_that_is_not_finite_on_one_rank_is_made_on_none(real_ranks: RealRanks, case: str) -> None:
    """And leaves no trace: test_checkpoint.py compares what comes after it bit by bit."""
    for told in real_ranks(ENGINE[case]):
        assert not told.poison_applied
        assert told.poison_left_weights


def test_the_optimiser_can_be_off_loaded(real_ranks: RealRanks) -> None:
    """DeepSpeed refuses an AdamW that is not its own there, unless it is told not to."""
    for distances in real_ranks(OFF_LOADED):
        assert max(distances) < 1e-6


def test_what_cdt_sets_cannot_be_contradicted() -> None:
    for options, remedy in (
        ({"train_batch_size": 4}, "train.batch_size"),
        ({"fp16": {"enabled": True}}, "engine.precision"),
        ({"gradient_clipping": 2}, "engine.clip"),
        ({"zero_optimization": {"stage": 2}}, "engine.zero_stage"),
    ):
        with pytest.raises(ValidationError, match=f"contradicts cdt's own setting: use {remedy}"):
            EngineConfig(deepspeed=options)
    with pytest.raises(ValidationError, match="zero_optimization must be a mapping"):
        EngineConfig(deepspeed={"zero_optimization": 3})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "zero_optimization.reduce_bucket_size=1e30",
            "zero_optimization.reduce_bucket_size: got 1e+30; must be a number",
        ),
        ("zero_optimization.reduce_bucket_size=0", "got 0; must be a number >= 1 and <= 1e+10"),
        ("zero_optimization.allgather_bucket_size=-5", "got -5; must be a number >= 0 and <= 1e+10"),
        ("zero_optimization.stage3_param_persistence_threshold=-1", "got -1; must be a number >= 0 and <= 9.223e+18"),
        (f"zero_optimization.sub_group_size={10**200}", "sub_group_size: got a number of too many digits; must be"),
        ("zero_optimization.offload_optimizer={device: cpu, ratio: .nan}", "offload_optimizer.ratio: got nan; must be"),
        ("wall_clock=[1, {a: .inf}]", "wall_clock.1.a: got inf; must be a number >= -9.223e+18"),
    ],
)
def test_numbers_among_raw_options_have_ranges(options: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(EngineConfig, apply_overrides({}, [f"deepspeed.{options}"]), where="here")
    assert str(caught.value).startswith("here: deepspeed: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_users_write_are_in_them() -> None:
    stated = "{zero_optimization: {reduce_bucket_size: 5e8, stage3_max_live_parameters: 1e9, sub_group_size: 1e12, "
    stated += f"model_persistence_threshold: {sys.maxsize}, offload_optimizer: {{ratio: 0.3}}}}, steps_per_print: -1}}"
    config = parse(EngineConfig, apply_overrides({}, [f"deepspeed={stated}"]), where="here")
    assert config.deepspeed["steps_per_print"] == -1
    assert bucket_size(config, 10) == 500_000_000


def test_deepspeed_prints_nothing(real_ranks: RealRanks) -> None:
    assert set(real_ranks.printed) == {""}


def test_raw_options_reach_deepspeed() -> None:
    raw = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 1000}}
    config = EngineConfig(zero_stage=2, precision="bf16", accumulation=3, clip=0.5, deepspeed=raw)
    assert deepspeed_options(config, 24, world=4, trained=10**9) == {
        "wall_clock_breakdown": True,
        "timers": {"throughput": {"enabled": False}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": False, "stage": 2},
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
    }


@pytest.mark.parametrize(("trained", "bucket"), [(3_000, 3_000), (10**9, 50_000_000)])
def test_the_buffer_of_gradients_is_no_larger_than_they_are(trained: int, bucket: int) -> None:
    options = deepspeed_options(EngineConfig(), 128, world=1, trained=trained)
    assert options["zero_optimization"]["reduce_bucket_size"] == bucket


def test_gradients_are_reduced_during_the_backward_pass_where_there_are_streams_and_others() -> None:
    for gpus, world, overlaps in ((True, 8, True), (True, 1, False), (False, 8, False)):
        options = deepspeed_options(EngineConfig(), 128, world, trained=10, gpus=gpus)
        assert options["zero_optimization"]["overlap_comm"] is overlaps
    stated = EngineConfig(deepspeed={"zero_optimization": {"overlap_comm": False}})
    assert deepspeed_options(stated, 128, 8, trained=10, gpus=True)["zero_optimization"]["overlap_comm"] is False


def test_the_throughput_timer_which_waits_for_the_device_runs_at_stage_3_alone() -> None:
    """There the streams of DeepSpeed are in order because of it."""
    timed = [deepspeed_options(EngineConfig(zero_stage=stage), 8, 1, trained=10)["timers"] for stage in (0, 1, 2, 3)]
    assert [each["throughput"]["enabled"] for each in timed] == [False, False, False, True]
