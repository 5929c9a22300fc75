"""A resumed run, and a fork, continue the run that was there: what may change, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_runs import interrupting, rows, same_weights

from cdt.config import RunConfig
from cdt.errors import InputError
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
    with pytest.raises(InputError, match=r"dual\.gamma: 1e\+09 with a step size"):
        resume(config.directory, ["dual.gamma=1e9", "train.dual_steps=8"])
    assert (config.directory / "config.yaml").read_text() == stated
    assert resume(config.directory, ["train.dual_steps=8"]).state.step == 12
