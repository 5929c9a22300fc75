"""Checkpoints with a flipped bit or a missing file: found, reported, and passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import flip, rows, same_weights

from cdt.checkpoints.checkpoint import damage, newest_sound
from cdt.errors import RunError
from cdt.runs.start import resume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


FILES = ["ema.safetensors", "weights.safetensors", "state.json", "engine/mp_rank_00_model_states.pt"]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(whole: Path, file: str) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    assert damage(newest) is None
    flip(newest / file)
    assert damage(newest) == f"{file}: contents differ from its manifest"


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(home: Path, whole: Path) -> None:
    checkpoints = whole / "checkpoints"
    flip(checkpoints / "step-000000008" / FILES[-1])
    (checkpoints / "step-000000006" / "state.json").unlink()
    assert newest_sound(checkpoints)[0] == checkpoints / "step-000000004"
    said: list[str] = []
    resume(whole, on_progress=lambda report: said.extend([report["said"]] if "said" in report else []))
    told = [row["text"] for row in rows(whole, "events.jsonl") if row["event"] == "damaged"]
    assert told == said
    assert [text.partition(":")[0] for text in told] == ["step-000000008 is damaged", "step-000000006 is damaged"]
    assert told[0].endswith("contents differ from its manifest; it is passed over, step-000000004 is taken")
    assert same_weights(whole, home / "whole")
    assert newest_sound(checkpoints) == (checkpoints / "step-000000008", [])


def test_a_run_does_not_begin_anew_because_all_its_checkpoints_are_damaged(whole: Path) -> None:
    for path in (whole / "checkpoints").iterdir():
        flip(path / "state.json")
    with pytest.raises(RunError, match=r"no checkpoint is intact; step-000000008 is damaged: state.json"):
        resume(whole)
