from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from checkpoint_scenarios import BOOBY_TRAPPED, FULL_DISKS
from engine_scenarios import ENGINE
from real_ranks import RealRanks

from cdt.checkpoints.checkpoint import (
    FORMAT,
    TrainState,
    checkpoint_name,
    complete_checkpoints,
    is_complete,
    read_state,
)
from cdt.data.stream import StreamState
from cdt.errors import InputError

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
    files = {"weights.safetensors": b"weights", "engine/part.pt": b"optimiser"}
    for name, content in files.items():
        (path / name).write_bytes(content)
    entries = {name: {"bytes": len(content), "sha256": ""} for name, content in files.items()}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "step": step, "files": entries}))
    return path


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
    stream = StreamState(7, {"base": 50, "constraint a": 6}, [(0, [0.0, 0.1]), (11, [1 / 3, 0.2])])
    state = TrainState(7, 2, 20, stream, {"baseline": [0.1, 1e-300], "state": {"period": 3}})
    (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    assert read_state(tmp_path) == state
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(InputError, match=r"has format 1; this version of cdt reads format 2"):
        read_state(tmp_path)


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
