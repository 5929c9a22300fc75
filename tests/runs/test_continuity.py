"""A resumed run, and a fork, continue the run that was there: what may change, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_runs import flip, interrupting, rows, same_weights

from cdt import filenames
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.errors import InputError
from cdt.files import remove, sha256
from cdt.runs.continuity import other_samples
from cdt.runs.evaluation import classifier_of
from cdt.runs.presence import SIGN
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


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


def test_a_resume_that_is_refused_changes_nothing(other: Callable[..., RunConfig]) -> None:
    config = other()
    train(config)
    stated = (config.directory / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"dual\.gamma: 1e\+06 with a step size"):
        resume(config.directory, ["dual.gamma=1e6", "train.dual_steps=8"])
    assert (config.directory / "config.yaml").read_text() == stated
    assert resume(config.directory, ["train.dual_steps=8"]).state.step == 12


@pytest.mark.parametrize("name", [*filenames.FILES, *filenames.FOLDERS, SIGN])
def test_what_has_the_name_of_a_run_s_file_is_refused_before_it_is_opened(whole: Path, name: str) -> None:
    """A pipe would be waited for."""
    remove(whole / name)
    os.mkfifo(whole / name)
    with pytest.raises(InputError, match=rf"{name}\b"):
        resume(whole, ["train.dual_steps=8"])


def test_a_directory_in_place_of_a_file_is_named(whole: Path) -> None:
    for name in (SIGN, filenames.EVENTS, filenames.CONFIG):
        remove(whole / name)
        (whole / name).mkdir()
        with pytest.raises(InputError, match=rf"^{whole / name} is not a regular file"):
            resume(whole, ["train.dual_steps=8"])
        (whole / name).rmdir()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was interrupted after its warm start; its shards lie beside it."""
    tiny.write_shards(tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        train(tiny.config(tmp_path / "data", tmp_path / "begun"), interrupting(6, KeyboardInterrupt()))
    return tmp_path / "begun"


def replaced(begun: Path) -> None:
    """Other samples of the same classes and counts, in the same place."""
    shutil.rmtree(begun.parent / "data")
    tiny.write_shards(begun.parent / "data", seed=1)


def test_other_samples_of_the_same_counts_are_refused_or_accepted_and_recorded(begun: Path) -> None:
    before = json.loads((begun / "data.json").read_text())
    replaced(begun)
    with pytest.raises(InputError, match=r"^data\.shards: these are not the samples .* --accept-data`$"):
        resume(begun)
    assert json.loads((begun / "data.json").read_text()) == before
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        resume(begun, (), lambda report: _note(report, said), accept_data=True)
    (event,) = [row for row in rows(begun, "events.jsonl") if row["event"] == "data changed"]
    assert event["text"] == said[0] == "data.shards: other samples than before, which was accepted"
    assert event["step"] == 4
    after = json.loads((begun / "data.json").read_text())
    assert after["digests"]["data"] != before["digests"]["data"]
    assert resume(begun).state.step == 8, "from then on they are the run's"


def _note(report: dict[str, Any], said: list[str]) -> None:
    if "said" in report:
        said.append(report["said"])
    interrupting(6, KeyboardInterrupt())({"step": 0} | report)


def test_a_run_of_an_earlier_version_goes_on_and_gets_a_digest(begun: Path) -> None:
    facts = json.loads((begun / "data.json").read_text())
    digests = facts.pop("digests")
    (begun / "data.json").write_text(json.dumps(facts))
    replaced(begun)
    resume(begun)
    assert json.loads((begun / "data.json").read_text())["digests"].keys() == digests.keys() == {"data"}
    assert [row for row in rows(begun, "events.jsonl") if row["event"] == "data changed"] == []


def test_moved_shards_are_the_same_samples(begun: Path) -> None:
    (begun.parent / "data").rename(begun.parent / "moved")
    assert resume(begun, [f"data.shards={begun.parent / 'moved'}"]).state.step == 8


def test_a_fork_of_a_run_on_other_samples(begun: Path, tmp_path: Path) -> None:
    replaced(begun)
    config = tiny.config(tmp_path / "data", tmp_path / "fork", run={"fork": str(begun)})
    with pytest.raises(InputError, match=r"run\.fork: .* on other samples .*\(data\.shards\).*--accept-data"):
        train(config)
    assert not config.directory.exists()
    train(config, accept_data=True)
    assert rows(config.directory, "events.jsonl")[0]["event"] == "data changed"


def test_a_damaged_fork_is_refused(begun: Path, tmp_path: Path) -> None:
    flip(begun / "checkpoints" / "step-000000004" / "engine" / "mp_rank_00_model_states.pt")
    config = tiny.config(tmp_path / "data", tmp_path / "fork", run={"fork": str(begun)})
    with pytest.raises(InputError, match=r"run\.fork: .*step-000000004 is damaged: engine/mp_rank_00_model_states\.pt"):
        train(config)


def test_probe_splits_and_given_replay_have_digests_too(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "data", split={"train": 0.85, "probe": 0.15})
    constraints = {"both": {"class": [4, 5], "max_loss": 300}}
    run = train(tiny.config(tmp_path / "data", tmp_path / "run", constraints=constraints, probe={"split": "probe"}))
    assert run.data["digests"].keys() == {"data", "probe"}
    assert other_samples({"digests": {"probe": "x"}}, run.data) == ["probe.split"]


def test_another_classifier_is_refused_or_accepted_and_recorded(other: Callable[..., RunConfig], home: Path) -> None:
    """Of the same labels: its shares are not comparable with those before."""
    judge = other().directory.parent / "judge.safetensors"
    judge.parent.mkdir()
    classifier_of(Index.load(home / "data"), steps=2).save(judge)
    constraints = {
        "four": {"class": 4, "generated_frequency": {"min": 0.2, "classifier": str(judge)}},
        "five": {"class": 5, "min_frequency": 0.4, "classifier": str(judge), "window": 0},
        "six": {"class": 6, "max_loss": 300.0},
    }
    config = other(constraints=constraints, probe={"generated_samples": 16})
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(6, KeyboardInterrupt()))
    run = config.directory
    before = json.loads((run / "data.json").read_text())["digests"]
    assert before.keys() == {"data", "classifier of four", "classifier of five"}
    assert before["classifier of four"] == sha256(judge)
    classifier_of(Index.load(home / "data"), steps=3).save(judge)
    with pytest.raises(InputError, match=r"^constraints\.four, constraints\.five: the classifier .* --accept-data`$"):
        resume(run)
    assert json.loads((run / "data.json").read_text())["digests"] == before
    assert resume(run, accept_data=True).state.step == 8
    (event,) = [row for row in rows(run, "events.jsonl") if row["event"] == "data changed"]
    assert event["text"] == "constraints.four, constraints.five: another classifier than before, which was accepted"
    after = json.loads((run / "data.json").read_text())["digests"]
    assert after == before | {name: sha256(judge) for name in ("classifier of four", "classifier of five")}
