from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_scenarios import BOOBY_TRAPPED, FULL_DISKS
from engine_scenarios import ENGINE
from real_ranks import RealRanks

from cdt.checkpoints.checkpoint import (
    FORMAT,
    TrainState,
    checkpoint_name,
    complete_checkpoints,
    damage,
    is_complete,
    open_checkpoint,
    read_state,
)
from cdt.data.stream import StreamState
from cdt.dual import DualState
from cdt.errors import DamagedWarning, InputError, RunError

DEEPSPEEDS_PLACES = ("optimiser of rank 1, refused", "optimiser of rank 1, full", "network of rank 0, refused")
OUR_PLACES = (
    "ema, refused",
    "weights, full",
    "state, full",
    "manifest, full",
    "renaming, full",
    "folder, full",
)


@pytest.mark.parametrize("case", ENGINE)
def test_what_is_saved_is_what_was_there(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.saved_weights
        assert told.saved_ema
        assert told.saved_state
        assert told.complete_before == []
        assert len(told.complete) == 1
        outside = [name for name in told.files if not name.startswith("engine/")]
        assert outside == ["ema.safetensors", "manifest.json", "state.json", "weights.safetensors"]


@pytest.mark.parametrize("case", ENGINE)
def test_a_fresh_engine_continues_bit_by_bit(real_ranks: RealRanks, case: str) -> None:
    for told in real_ranks(ENGINE[case]):
        assert told.resumed_weights
        assert told.resumed_ema


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        *(("stage 1", place) for place in (*DEEPSPEEDS_PLACES, *OUR_PLACES)),
        *(("stage 3", place) for place in DEEPSPEEDS_PLACES),
    ],
)
def test_a_rank_that_cannot_write_leaves_nothing_behind(real_ranks: RealRanks, stage: str, place: str) -> None:
    one, other = (disks.met[place] for disks in real_ranks(FULL_DISKS[stage]))
    assert one == other
    assert one.left == one.complete == [checkpoint_name(1)]
    assert f"{checkpoint_name(2)}: " in one.heard
    assert one.heard.endswith("earlier checkpoints are intact")
    assert "\n" not in one.heard
    if place.endswith("full"):
        assert "the disk is full" in one.heard


@pytest.mark.parametrize("stage", FULL_DISKS)
def test_saving_works_again_when_there_is_room(real_ranks: RealRanks, stage: str) -> None:
    for disks in real_ranks(FULL_DISKS[stage]):
        assert disks.afterwards == [checkpoint_name(1), checkpoint_name(2)]


def test_a_checkpoint_is_data_and_is_not_executed(real_ranks: RealRanks) -> None:
    for told in real_ranks(BOOBY_TRAPPED):
        assert told.heard.endswith("holds more than weights and optimiser state; it was not run")
        assert told.executed == []


def write(folder: Path, step: int) -> Path:
    """A checkpoint by hand, of two files."""
    path = folder / checkpoint_name(step)
    (path / "engine").mkdir(parents=True)
    stream = StreamState(step, {"base": 8}, [(0, [])])
    files = {
        "weights.safetensors": b"weights",
        "ema.safetensors": b"averages",
        "engine/part.pt": b"optimiser",
        "state.json": json.dumps(asdict(TrainState(step, 1, 20, stream))).encode(),
    }
    for name, content in files.items():
        (path / name).write_bytes(content)
    seal_again(path, step)
    return path


def seal_again(path: Path, step: int, **others: Any) -> None:
    """A manifest that says what is there."""
    files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    files.pop("manifest.json", None)
    entries = {
        name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for name, file in files.items()
    }
    tree = {"format": FORMAT, "step": step, "files": entries} | others
    (path / "manifest.json").write_text(json.dumps(tree))


def test_only_complete_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path / "nowhere") == []
    paths = [write(tmp_path, step) for step in (1000, 20, 3)]
    write(tmp_path / "aside", 7)
    (tmp_path / ".step-000000004.partial").mkdir()
    (tmp_path / "step-4").mkdir()
    assert complete_checkpoints(tmp_path) == paths[::-1]


@pytest.mark.parametrize("name", ["weights.safetensors", "engine/part.pt", "manifest.json"])
def test_a_missing_or_truncated_file_makes_it_incomplete(tmp_path: Path, name: str) -> None:
    missing, truncated, grown = (write(tmp_path, step) for step in range(3))
    (missing / name).unlink()
    content = (truncated / name).read_bytes()
    (truncated / name).write_bytes(content[:-1])
    (grown / name).write_bytes(content + b"x")
    assert not any(is_complete(path) for path in (missing, truncated, grown))
    whole = write(tmp_path, 9)
    assert complete_checkpoints(tmp_path) == [whole]


def test_states_survive_json(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    stream = StreamState(7, {"base": 50, "constraint a": 6}, [(0, [0.0, 0.1]), (11, [1 / 3, 0.2])])
    state = TrainState(7, 2, 20, stream, dual_of_two(), 1e-300, [[[1.0, 2.0, 3.0]]] * 2)
    (path / "state.json").write_text(json.dumps(asdict(state)))
    seal_again(path, 7)
    assert read_state(path) == state
    seal_again(path, 7, format=1)
    with pytest.raises(InputError, match=r"has format 1; this version of cdt reads format 2"):
        read_state(path)


def dual_of_two() -> dict[str, Any]:
    """The dual side of two constraints, of which the second was never measured."""
    state = DualState.first(np.array([0.5, 0.0]), alarms=4).to_json()
    calibration = {"loss": 1.5, "share": 0.25, "window": 0.5, "reference": None, "share_measured": False}
    return {
        "calibrations": [calibration, calibration],
        "baseline": [0.1, 1e-300],
        "thresholds": [1.0, 2.0],
        "budgets": "0" * 64,
        "slack": [0.5, None],
        "state": state,
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": 8}, r"state\.json says step 8, its manifest 7"),
        ({"world": 0}, "world: Input should be greater than or equal to 1"),
        ({"dual_steps": -1}, "dual_steps"),
        ({"loss": "low"}, "loss"),
        ({"sums": [[[1.0, 2.0]]]}, "sums.0.0"),
        ({"sums": [[[1.0, 2.0, 3.0]]] * 3}, "sums of 3 workers, but 2 wrote it"),
        ({"sums": [[[1.0, 2.0, 3.0]], []]}, "sums of other numbers of cells"),
        ({"stream": {"batch": 7, "counters": {"base": 1}, "history": []}}, "stream.history is empty"),
        (
            {"stream": {"batch": 7, "counters": {"base": 1}, "history": [[0, [0.0]]]}},
            "1 and .* 2 constraints",
        ),
        ({"stream": {"batch": 7, "counters": {"base": 1}, "history": [[0, [1e999, 0.0]]]}}, "finite"),
        ({"stream": {"batch": 2**62, "counters": {"base": 1}, "history": [[0, [0.0, 0.0]]]}}, "less than"),
        ({"dual": {}}, "dual"),
        ({"dual": dual_of_two() | {"slack": [0.5]}}, "constraints"),
        ({"dual": dual_of_two() | {"state": dual_of_two()["state"] | {"lambdas": [None, 0.0]}}}, "lambdas.0"),
    ],
)
def test_a_state_that_cannot_be_is_refused_though_its_digest_is_right(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write(tmp_path, 7)
    stream = StreamState(7, {"base": 50}, [(0, [0.0, 0.1])])
    state = asdict(TrainState(7, 2, 20, stream, dual_of_two())) | change
    (path / "state.json").write_text(json.dumps(state))
    seal_again(path, 7)
    with pytest.raises(InputError, match=told) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert damage(path) is not None


def test_the_best_checkpoint_meets_all_requirements_then_has_the_lowest_loss() -> None:
    def state(slack: list[float | None], loss: float | None) -> TrainState:
        return TrainState(1, 1, 1, StreamState(0, {}, []), {"slack": slack}, loss)

    best_last = [
        state([None, 1.0], 1.0),  # one was never measured
        state([-2.0, 5.0], 1.0),
        state([-0.1, 0.0], 9.0),
        state([0.0, 0.1], None),
        state([0.0, 0.1], 7.0),
        state([3.0, 0.0], 6.5),
    ]
    shuffled = random.Random(0).sample(best_last, len(best_last))
    assert sorted(shuffled, key=TrainState.quality) == best_last


def test_of_the_best_a_damaged_one_is_passed_over_aloud(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (1, 2, 3)]
    (paths[0] / "state.json").write_bytes(b"x" * (paths[0] / "state.json").stat().st_size)
    with pytest.warns(DamagedWarning, match=r"step-000000001 is damaged: .*state\.json.* step-000000002 is taken"):
        assert open_checkpoint(tmp_path, "best").path == paths[1]
    with pytest.raises(InputError, match=r"step-000000001 is damaged: state\.json"):
        open_checkpoint(tmp_path, "1")
    for which in ("4", "0x2", "9" * 5000, "²"):
        with pytest.raises(InputError, match="there are last, best, 1, 2, 3"):
            open_checkpoint(tmp_path, which)
    assert open_checkpoint(tmp_path, "002").path == paths[1]


def test_weights_are_compared_unless_that_is_left_out(tmp_path: Path) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    (newer / "ema.safetensors").write_bytes(b"AVERAGES")
    assert open_checkpoint(tmp_path, check=False).path == newer
    with pytest.warns(DamagedWarning, match=r"ema\.safetensors: contents differ from its manifest; it is passed over"):
        assert open_checkpoint(tmp_path).path == older
    (older / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"no checkpoint is intact; step-000000002 is .*; step-000000001 is damaged"):
        open_checkpoint(tmp_path)
