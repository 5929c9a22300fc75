"""Runs that start, report, are interrupted and resumed, or are refused; all in this process."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_runs import interrupting, rows, same_weights

import cdt
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.errors import InputError, RunError
from cdt.runs.evaluation import classifier_of
from cdt.runs.run import Run
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_run_in_this_process_has_the_threads_it_asks_for(other: Callable[..., RunConfig]) -> None:
    before, seen = torch.get_num_threads(), set[int]()
    asked = before + 1
    train(other(run={"threads": asked}), lambda report: seen.add(torch.get_num_threads()))
    assert seen == {asked}
    assert torch.get_num_threads() == before


def test_a_run_is_returned_opened(home: Path) -> None:
    run = cdt.load(home / "whole")
    assert run.state.step == 8
    assert [row["constraint"] for row in run.constraint_rows()] == ["four", "five"]
    assert run.config == tiny.config(home / "data", home / "whole", train={"checkpoint_steps": 2})
    assert run.data["class_counts"] == [0, 0, 177, 183, 18, 182, 181, 0, 0, 0]


def test_a_run_knows_its_data_from_anywhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    run = train(tiny.config(Path("data"), Path("here")))
    monkeypatch.chdir(tmp_path)
    assert Run(home / "here").config.data.shards == str(home / "data") == run.config.data.shards


def test_reports_arrive_as_it_trains(other: Callable[..., RunConfig]) -> None:
    reports: list[dict[str, Any]] = []
    train(other(), reports.append)
    assert [report["step"] for report in reports] == sorted(report["step"] for report in reports)
    assert {report["phase"] for report in reports} == {"warm", "calibration", "dual"}
    assert reports[-1]["step"] == reports[-1]["total"] == 8
    assert reports[-1]["worst"][0] in ("four", "five")


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(home: Path, other: Callable[..., RunConfig]) -> None:
    """Ctrl-C between two checkpoints: steps 5 and 6 and a dual step are recomputed, with the same result."""
    config = other()
    with pytest.raises(KeyboardInterrupt, match="continue with `cdt resume"):
        train(config, interrupting(6, KeyboardInterrupt()))
    assert Run(config.directory).state.step == 4
    resume(config.directory)
    assert same_weights(config.directory, home / "whole")
    journal = rows(config.directory, "dual.jsonl")
    assert [row["period"] for row in journal] == [1, 1, 1, 1, 2, 2]
    assert journal[:2] == journal[2:4]
    assert journal[2:] == rows(home / "whole", "dual.jsonl")
    assert [row["event"] for row in rows(config.directory, "events.jsonl")].count("start") == 2


def test_a_bug_is_told_once_with_its_traceback_and_recorded(other: Callable[..., RunConfig]) -> None:
    config = other()
    with pytest.raises(RunError) as caught:
        train(config, interrupting(6, ZeroDivisionError("by nothing")))
    said = str(caught.value)
    assert said.startswith("worker 0 failed:\nTraceback")
    assert said.count("Traceback") == said.count("ZeroDivisionError: by nothing") == 1
    assert said.splitlines()[-1].startswith(f"continue with `cdt resume {config.directory}`")
    last = rows(config.directory, "events.jsonl")[-1]
    assert (last["event"], last["step"]) == ("failed", 6)
    assert "by nothing" in last["text"]


def test_a_run_that_fails_before_its_first_checkpoint_begins_again(home: Path, other: Callable[..., RunConfig]) -> None:
    config = other()
    with pytest.raises(RunError, match=r"no checkpoint was saved yet; begin again with `cdt resume .*/other`"):
        train(config, interrupting(2, ValueError()))
    with pytest.raises(
        InputError, match=r"exists already: .*run\.name=NAME, or continue it with `cdt resume .*/other`"
    ):
        train(config)
    resume(config.directory)
    assert same_weights(config.directory, home / "whole")


def test_a_run_directory_that_cannot_be_made(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make .*/file/run: Not a directory"):
        train(tiny.config(home / "data", tmp_path / "file" / "run"))


def test_shares_of_generated_samples_are_measured_by_a_classifier(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    judge = tmp_path / "judge.safetensors"
    classifier_of(Index.load(home / "data"), steps=10).save(judge)
    constraints = {
        "four": {"class": 4, "generated_frequency": {"min": 0.2, "classifier": str(judge)}},
        "both": {"class": [4, 5], "min_frequency": 0.4, "classifier": str(judge), "window": 0},
        "five": {"class": 5, "max_loss": 300.0},
    }
    config = other(constraints=constraints, probe={"generated_samples": 20})
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(6, KeyboardInterrupt()))
    run = resume(config.directory)
    four, both, five = run.calibration()
    assert four["window"] is four["reference_loss"] is None
    assert four["threshold"] == pytest.approx(-math.log(0.2))
    assert four["warm_loss"] == pytest.approx(-math.log(four["warm_share"]))
    assert both["threshold"] == pytest.approx(both["warm_loss"] - math.log(0.4 / both["warm_share"]))
    assert five["warm_share"] is None
    measured = {row["constraint"]: row for row in run.constraint_rows()}
    assert [measured[name]["count"] for name in constraints] == [20, 8, 8]
    assert 0 < math.exp(-measured["four"]["loss"]) < 1
    again = [row for row in rows(config.directory, "dual.jsonl") if row["period"] == 1]
    assert again[:3] == again[3:]  # what was lost with the interruption was drawn again


def test_the_probe_takes_held_out_samples_where_there_are_enough(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "data", split={"train": 0.85, "probe": 0.15})
    constraints = {"four": {"class": 4, "max_loss": 300}, "both": {"class": [4, 5], "max_loss": 300}}
    config = tiny.config(tmp_path / "data", tmp_path / "run", constraints=constraints, probe={"split": "probe"})
    events = rows(train(config).directory, "events.jsonl")
    (told,) = [row["text"] for row in events if row["event"] == "held out"]
    assert told == "losses are measured on samples of split probe for both; on training samples for four"
    gaps = [row for row in events if row["event"] == "held-out gap"]
    assert [row["step"] for row in gaps] == [4, 8]
    assert all(row["text"].startswith("loss on held-out minus on training samples, nats: both ") for row in gaps)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"probe": {"split": "train"}}, "probe.split: train is the split that is trained on"),
        ({"probe": {"split": "val"}}, "has no split 'val'; it has train"),
        (
            {"constraints": {"a": {"class": 4, "min_frequency": 0.1, "classifier": "none.safetensors"}}},
            "none.safetensors",
        ),
        (
            {"constraints": {"a": {"class": 4, "max_kl": 0.1, "reference": "nowhere"}}},
            "reference: no such directory: nowhere",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    sections: dict[str, Any], told: str, other: Callable[..., RunConfig]
) -> None:
    config = other(**sections)
    with pytest.raises(InputError, match=told):
        train(config)
    assert not config.directory.exists()
