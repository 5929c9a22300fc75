"""A run whose checkpoints were deleted or renamed does not begin again as if it were new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import interrupting, rows, same_weights

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.files import remove
from cdt.runs.lost import lost_checkpoints
from cdt.runs.run import Run
from cdt.runs.start import resume, train
from cdt.runs.status import describe_status

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def deleted(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def emptied(run: Path) -> None:
    deleted(run)
    (run / "checkpoints").mkdir()


def renamed(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        path.rename(path.with_name(f"{path.name}.bak"))


@pytest.mark.parametrize("lose", [deleted, emptied, renamed])
def test_checkpoints_that_are_gone_are_missed(lose: Callable[[Path], None], whole: Path) -> None:
    lose(whole)
    before = sorted((path, path.stat().st_size) for path in whole.rglob("*"))
    with pytest.raises(InputError) as caught:
        resume(whole, ["train.dual_steps=8"])
    assert str(caught.value) == (
        f"{whole}/checkpoints has no checkpoint (step-N), and events.jsonl says that checkpoints/step-000000008 was "
        f"saved: put them back from a copy, or start over as a new run: `cdt train {whole}/config.yaml run.name=NAME`"
    )
    assert sorted((path, path.stat().st_size) for path in whole.rglob("*")) == before
    told = "  no checkpoint any more, though events.jsonl says that checkpoints/step-000000008 was saved"
    assert told in list(describe_status(whole))


@pytest.mark.parametrize(
    ("lost", "trace"),
    [
        (["events.jsonl"], "metrics.jsonl says that 8 steps were done"),
        (["events.jsonl", "metrics.jsonl"], "dual.jsonl says that 8 steps were done"),
        (["events.jsonl", "metrics.jsonl", "dual.jsonl"], None),
    ],
)
def test_each_journal_tells_of_them(lost: list[str], trace: str | None, whole: Path) -> None:
    deleted(whole)
    for name in lost:
        remove(whole / name)
    assert lost_checkpoints(Run(whole)) == trace


def test_the_way_to_start_over_that_is_named(home: Path, whole: Path) -> None:
    deleted(whole)
    config = RunConfig.load(whole / "config.yaml", [f"run.dir={whole.parent}", "run.name=new"])
    train(config)
    assert same_weights(whole.parent / "new", home / "whole")


def test_a_run_that_had_none_begins_again(home: Path, other: Callable[..., RunConfig]) -> None:
    """Without a warm start, dual steps come before the first checkpoint."""
    config = other(train={"warm_steps": 0, "dual_steps": 8})
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupting(6, KeyboardInterrupt()))
    assert rows(config.directory, "dual.jsonl")
    assert lost_checkpoints(Run(config.directory)) is None
    assert "  no checkpoint yet" in list(describe_status(config.directory))
    assert resume(config.directory).state.step == 8
