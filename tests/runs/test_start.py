"""Runs that begin, end early, go on, fork, or are refused; all in this process."""

from __future__ import annotations

import _thread
import json
import math
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import cdt
from cdt.checkpoints import saving
from cdt.checkpoints.checkpoint import read_weights
from cdt.cli.command import main
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.engine.engine import Engine
from cdt.errors import InputError, RunError
from cdt.runs.dryrun import describe_plan
from cdt.runs.evaluation import classifier_of
from cdt.runs.run import Run
from cdt.runs.start import resume, train

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in ``data``, and the finished run ``whole``."""
    home = tmp_path_factory.mktemp("home")
    tiny.write_shards(home / "data")
    train(tiny.config(home / "data", home / "whole"))
    return home


@pytest.fixture
def other(home: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration like that of ``whole`` for a run in a place of its own."""
    return lambda **sections: tiny.config(home / "data", tmp_path / "runs" / "other", **sections)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last checkpoints agree bit by bit, in the EMA and the raw weights."""
    pairs = [[read_weights(Run(run).checkpoint, raw) for run in (one, other)] for raw in (False, True)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a | b)


def interrupting(step: int, with_error: BaseException) -> Callable[[dict[str, Any]], None]:
    def on_progress(report: dict[str, Any]) -> None:
        if report["step"] >= step:
            raise with_error

    return on_progress


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
    assert run.config == tiny.config(home / "data", home / "whole")
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


def test_a_run_that_diverges_ends_and_says_what_to_change(other: Callable[..., RunConfig]) -> None:
    """Its first updates are finite, and no checkpoint is there to go back to."""
    with pytest.raises(RunError, match=r"3 updates in a row could not be made by step \d, .* \(now 1e\+30\)"):
        train(other(train={"lr": 1e30, "max_skipped": 3, "warm_steps": 8}))


def test_samples_that_cannot_be_read_end_the_run_in_one_line(home: Path, tmp_path: Path) -> None:
    """The sizes are right, so only reading finds it: byte offset, shard and remedy are named."""
    damaged = Path(shutil.copytree(home / "data", tmp_path / "damaged"))
    for tar in (damaged / "train").iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(RunError) as caught:
        train(tiny.config(damaged, tmp_path / "run"))
    first, *rest = str(caught.value).splitlines()
    assert "train/000000.tar, byte" in first
    assert f"`cdt verify {damaged}`" in first
    assert len(rest) == 1


def test_a_disk_that_refuses_a_checkpoint_keeps_those_before(other: Callable[..., RunConfig]) -> None:
    """A limit on the size of files stands for the full disk; the network is larger than the limit."""
    config = other(network={"width": 64})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(report: dict[str, Any]) -> None:
        if report["step"] == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    try:
        with pytest.raises(RunError, match=r"cannot save .*step-000000008: .*earlier checkpoints are intact\ncontinue"):
            train(config, fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (config.directory / "checkpoints").iterdir()] == ["step-000000004"]
    assert resume(config.directory).state.step == 8


def test_a_disk_that_takes_nothing_leaves_nothing(other: Callable[..., RunConfig]) -> None:
    config = other()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*/other/config\.yaml"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not config.directory.exists()


def test_a_run_directory_that_cannot_be_made(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make .*/file/run: Not a directory"):
        train(tiny.config(home / "data", tmp_path / "file" / "run"))


def test_the_plan_refuses_what_training_refuses_and_writes_nothing(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = describe_plan(other(run={"fork": str(home / "whole")}))
    assert "warm start 0 steps, dual training 4 steps" in plan
    assert "starts from" in plan
    assert "every 2 training steps, 2 constraints" in plan
    with pytest.raises(InputError, match=r"continue it with `cdt resume .*/whole`"):
        describe_plan(tiny.config(home / "data", home / "whole"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"train": {"warm_steps": 5}}, "no complete checkpoint at step 5"),
        ({"network": {"width": 32}}, "differs in network;"),
        ({"engine": {"precision": "bf16"}}, "differs in engine.precision;"),
        ({"data": {"shards": "full"}}, "differs in class_counts of its data;"),
    ],
)
def test_a_fork_must_continue_its_origin(
    sections: dict[str, Any], told: str, home: Path, other: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    if not Path("full").exists():
        tiny.write_shards(Path("full"), keep={})
    config = other(run={"fork": "whole"}, **sections)
    with pytest.raises(InputError, match=told):
        train(config)
    assert not config.directory.exists()


def test_a_fork_with_the_same_constraints_repeats_its_origin(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Once it has a checkpoint of its own, it does not need its origin any more."""
    origin = Path(shutil.copytree(home / "whole", tmp_path / "origin"))
    config = other(run={"fork": str(origin)}, train={"checkpoint_steps": 6})
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(8, KeyboardInterrupt()))
    assert rows(config.directory, "events.jsonl")[0]["text"] == "step 4 of 8 on 1 workers"
    shutil.rmtree(origin)
    assert resume(config.directory).state.step == 8
    assert same_weights(config.directory, home / "whole")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "is complete: 8 of 8 steps are done; more with train.dual_steps=N"),
        (["train.batch_size=8"], "train.batch_size cannot change when a run is resumed; these can: .*train.dual_steps"),
        (["train.dual_steps=8", "data.shards=full"], "data.shards: .*/full differs from the run's data in class"),
        (["train.dual_steps=-1"], "train.dual_steps: got -1; must be an integer >= 0"),
    ],
)
def test_resuming_changes_nothing_that_would_make_it_another_run(
    overrides: list[str], told: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    if not Path("full").exists():
        tiny.write_shards(Path("full"), keep={})
    before = (home / "whole" / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=told):
        resume(home / "whole", overrides)
    assert (home / "whole" / "config.yaml").read_bytes() == before


def test_a_budget_that_changes_on_resume_is_recorded(other: Callable[..., RunConfig]) -> None:
    config = other(train={"checkpoint_steps": 6})
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(8, KeyboardInterrupt()))
    before = rows(config.directory, "dual.jsonl")[0]["threshold"]
    resume(config.directory, ["constraints.four.min_frequency=0.3"])
    after = [row["threshold"] for row in rows(config.directory, "dual.jsonl") if row["constraint"] == "four"][-1]
    assert after == pytest.approx(before - math.log(0.3 / 0.2))
    (told,) = [row["text"] for row in rows(config.directory, "events.jsonl") if row["event"] == "budget"]
    assert told == f"four: threshold {before:.3f} -> {after:.3f} nats"
    with pytest.raises(InputError, match=r"constraints.four.class cannot change .* constraints.five.max_loss"):
        resume(config.directory, ["constraints.four.class=5"])


EASY = {"four": {"class": 4, "min_frequency": 1e-6, "window": 0}, "five": {"class": 5, "max_loss": 1e6}}


def test_dual_training_ends_when_all_requirements_are_satisfied_for_long_enough(
    other: Callable[..., RunConfig],
) -> None:
    config = other(constraints=EASY, dual={"stop_when_satisfied_for": 2}, train={"dual_steps": 40, "cooldown_steps": 2})
    run = train(config)
    assert run.state.step == 4 + 2 * 2 + 2
    assert rows(config.directory, "metrics.jsonl")[-1]["lr"] < config.train.lr  # the cool-down came all the same
    assert [row["period"] for row in rows(config.directory, "dual.jsonl")] == [1, 1, 2, 2]
    assert "satisfied for 2 periods" in json.dumps(rows(config.directory, "events.jsonl"))
    with pytest.raises(InputError, match="is complete: dual training ended with all requirements satisfied"):
        resume(config.directory)


def test_a_run_that_ended_early_goes_on_under_other_budgets(other: Callable[..., RunConfig]) -> None:
    config = other(constraints=EASY, dual={"stop_when_satisfied_for": 1}, train={"dual_steps": 6})
    assert train(config).state.step == 6
    assert resume(config.directory, ["constraints.five.max_loss=0.1"]).state.step == 10
    with pytest.raises(InputError, match="is complete: 10 of 10 steps are done"):
        resume(config.directory)


@pytest.mark.parametrize(("where", "kept"), [("seal", 8), ("_write_weights", 8), ("snapshot", 4)])
def test_an_interrupt_within_a_save_leaves_what_was_whole(
    where: str, kept: int, home: Path, other: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the name, while it is written, and before all of it was copied."""
    owner: Any = Engine if where == "snapshot" else saving
    calls, real = [], getattr(owner, where)

    def interrupted(*arguments: Any) -> Any:
        calls.append(where)
        if where == "snapshot" and len(calls) == 2:
            raise KeyboardInterrupt
        answer = real(*arguments)
        if where == "seal" and len(calls) == 2:
            raise KeyboardInterrupt
        if where == "_write_weights" and len(calls) == 3:
            _thread.interrupt_main()
        return answer

    monkeypatch.setattr(owner, where, interrupted)
    config = other()
    # A shell that starts the tests in the background makes them deaf to Ctrl-C.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config)
    finally:
        signal.signal(signal.SIGINT, heard)
    monkeypatch.undo()
    assert Run(config.directory).state.step == kept
    if kept < 8:
        resume(config.directory)
    assert same_weights(config.directory, home / "whole")


def test_an_extension_that_dies_before_its_first_checkpoint_is_not_taken_for_an_early_end(
    other: Callable[..., RunConfig],
) -> None:
    config = other()
    train(config)
    with pytest.raises(KeyboardInterrupt):
        resume(config.directory, ["train.dual_steps=8"], interrupting(10, KeyboardInterrupt()))
    assert Run(config.directory).state.step == 8
    assert resume(config.directory).state.step == 12


def test_a_resume_that_is_refused_changes_nothing(other: Callable[..., RunConfig]) -> None:
    config = other()
    train(config)
    stated = (config.directory / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"dual\.gamma: 1e\+09 with a step size"):
        resume(config.directory, ["dual.gamma=1e9", "train.dual_steps=8"])
    assert (config.directory / "config.yaml").read_text() == stated
    assert resume(config.directory, ["train.dual_steps=8"]).state.step == 12


def test_an_early_end_survives_an_interruption_in_the_cooldown(other: Callable[..., RunConfig]) -> None:
    config = other(
        constraints=EASY,
        dual={"stop_when_satisfied_for": 1},
        train={"dual_steps": 40, "cooldown_steps": 4, "log_steps": 1},
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(8, KeyboardInterrupt()))
    assert Run(config.directory).state.step == 6
    assert resume(config.directory).state.step == 10


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


def test_budgets_relative_to_another_run(home: Path, other: Callable[..., RunConfig]) -> None:
    constraints = {
        "same": {"class": 4, "max_kl": 0.5, "reference": str(home / "whole"), "window": 0},
        "all": {"class": 5, "max_excess": 0.1, "reference": "base"},
        "warm": {"class": 5, "max_excess": 0.1},
    }
    config = other(run={"fork": str(home / "whole")}, constraints=constraints, train={"dual_steps": 2})
    same, on_all, warm = train(config).calibration()
    # The reference went on after the fork, so it is near the warm model and not it.
    assert same["reference_loss"] != same["warm_loss"]
    assert same["reference_loss"] == pytest.approx(same["warm_loss"], rel=0.2)
    assert same["threshold"] == pytest.approx(same["reference_loss"] + 0.5)
    assert on_all["threshold"] == pytest.approx(1.1 * on_all["reference_loss"])
    assert warm["threshold"] == pytest.approx(1.1 * warm["warm_loss"])


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


def test_a_shard_that_is_missing_before_the_start_is_one_line(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "data", shard_mb=0.05)
    (tmp_path / "data/train/000002.tar").unlink()
    with pytest.raises(InputError, match=r"^[^\n]*does not match its index: train/000002.tar is missing$"):
        train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.9}))
    assert not (tmp_path / "run").exists()


def test_shards_that_disappear_while_a_run_reads_them_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named in events.jsonl and at the end; a resumed run goes on within the budget, and stops beyond it."""
    index = Index.load(tiny.write_shards(tmp_path / "data", shard_mb=0.05))
    gone = {info.name for info in index.shards[::2]}
    assert len(index.shards) > 10

    def remove(report: dict[str, Any]) -> None:
        if report["step"] == 2:
            for name in gone:
                (tmp_path / "data" / name).unlink(missing_ok=True)

    run = train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.9, "cache_mb": 0}), remove)
    bad = run.bad_samples()
    assert bad
    assert {sample["kind"] for sample in bad} == {"missing shard"}
    assert {sample["shard"] for sample in bad} <= gone
    assert {sample["key"] for sample in bad} <= set(index.keys())
    data = [event for event in rows(tmp_path / "run", "events.jsonl") if event["event"] == "data"]
    assert [event["step"] for event in data] == [2, 4, 6, 8]
    assert sum(stream["replaced"] for event in data for stream in event["streams"].values()) > 5
    assert data[-1]["bad"] == {"missing shard": len(bad)}
    assert main(["resume", str(tmp_path / "run"), "train.dual_steps=6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "samples were unusable; each was replaced by another sample of its class: missing shard" in said
    settings = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(settings.replace("max_bad_fraction: 0.9", "max_bad_fraction: 0.001"))
    with pytest.raises(InputError, match=r"does not match its index: train/000000\.tar is missing"):
        resume(tmp_path / "run", ["train.dual_steps=8"])


def test_too_many_bad_samples_end_a_run_with_the_worst_shards(tmp_path: Path) -> None:
    index = Index.load(tiny.write_shards(tmp_path / "data", shard_mb=0.05))
    for row in range(index.count):
        with (index.root / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 60)
            file.write(b"spoiled" if row % 3 else b"")
    with pytest.raises(RunError) as caught:
        train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.01}))
    said = str(caught.value).splitlines()[0]
    assert re.match(r"\d+ samples are unusable \(wrong checksum \d+\); most of them in train/", said)
    assert said.count("as the image's CRC-32") == 3
    assert "Traceback" not in str(caught.value)
