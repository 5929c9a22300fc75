"""A run restarts after a worker died, or goes back after it diverged, a limited number of times."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import rows, steps

from cdt.checkpoints.checkpoint import read_weights
from cdt.cluster.restarts import WorkerDiedError, persist
from cdt.config import RunConfig
from cdt.dual import Sums
from cdt.errors import RunError
from cdt.runs.run import Run
from cdt.runs.start import train
from cdt.training import worker
from cdt.training.dual_side import DualSide
from cdt.training.health import UnsoundEndError
from cdt.training.job import Job
from cdt.training.step import train_step

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def attempts_that_die(whole: Path, run: Path, reached: list[int | None]) -> tuple[Callable[[Job], bool], list[Job]]:
    """Attempts that save at the given steps, or not at all, and die; what they were given."""
    given: list[Job] = []

    def attempt(job: Job) -> bool:
        given.append(job)
        step = reached[len(given) - 1]
        if step is not None:
            shutil.copytree(whole / f"checkpoints/step-{step:09d}", run / f"checkpoints/step-{step:09d}")
        raise WorkerDiedError("worker 1 died")

    return attempt, given


@pytest.mark.parametrize(
    ("fork", "reached"),
    [
        (False, [None] * 3),
        (True, [None] * 3),
        (True, [None, 4, None, None]),
        (False, [None, None, 2, None, 4, 6, None, None]),
    ],
)
def test_a_run_begins_again_until_it_has_died_too_often_without_a_new_checkpoint(
    whole: Path, tmp_path: Path, other: Callable[..., RunConfig], fork: bool, reached: list[int | None]
) -> None:
    origin = whole / "checkpoints" / "step-000000002" if fork else None
    job = Job(other(run={"max_restarts": 2}), tmp_path / "run", origin, fork)
    attempt, given = attempts_that_die(whole, tmp_path / "run", reached)
    told: list[str] = []
    with pytest.raises(WorkerDiedError, match="worker 1 died"):
        persist(job, attempt, lambda kind, text: told.append(text))
    assert len(given) == len(reached) == len(told) + 1
    newest = None
    for step, again, line in zip(reached, given[1:], told, strict=False):
        newest = step or newest
        path = origin if newest is None else tmp_path / f"run/checkpoints/step-{newest:09d}"
        assert (again.checkpoint, again.fork) == (path, fork and newest is None)
        assert line.endswith("the beginning" if newest is None else f"step-{newest:09d}")


def poisoned(monkeypatch: pytest.MonkeyPatch, batches: range) -> None:
    """Losses that are not finite, wherever the data stand at one of these batches."""

    def step(engine: Any, diffusion: Any, batch: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        if int(batch.positions[0]) // options["batch_size"] in batches:
            batch.weights[0] = torch.nan
        return train_step(engine, diffusion, batch, *arguments, **options)

    monkeypatch.setattr(worker, "train_step", step)


def test_an_update_that_is_not_finite_is_left_out(
    monkeypatch: pytest.MonkeyPatch, other: Callable[..., RunConfig]
) -> None:
    poisoned(monkeypatch, range(4, 6))
    config = other(train={"max_skipped": 3})
    train(config)
    skipped = [row["step"] for row in rows(config.directory, "events.jsonl") if row["event"] == "skipped"]
    assert skipped == [5, 6]
    assert [row["skipped_updates"] for row in rows(config.directory, "metrics.jsonl")] == [0, 0, 2, 0]
    assert [row["loss"] is None for row in rows(config.directory, "metrics.jsonl")] == [False, False, True, False]
    assert all(weight.isfinite().all() for weight in read_weights(Run(config.directory).checkpoint).values())


def test_after_too_many_in_a_row_it_goes_back_and_on_with_other_data(
    monkeypatch: pytest.MonkeyPatch, other: Callable[..., RunConfig]
) -> None:
    poisoned(monkeypatch, range(5, 7))
    config = other(train={"max_skipped": 2})
    said: list[str] = []
    train(config, lambda report: said.extend([report["said"]] if "said" in report else []))
    events = rows(config.directory, "events.jsonl")
    told = [row["text"] for row in events if row["event"] == "rollback"]
    assert told == said
    assert len(told) == 1
    assert told[0].startswith("2 updates in a row could not be made by step 7")
    assert told[0].endswith("going back to step-000000004, continuing with the data after batch 7")
    state = Run(config.directory).state
    assert (state.step, state.stream.batch) == (8, 8 + 3)
    assert [row["step"] for row in events if row["event"] == "skipped"] == [6, 7]


def test_if_other_data_do_not_help_it_ends_with_a_diagnosis(
    monkeypatch: pytest.MonkeyPatch, other: Callable[..., RunConfig]
) -> None:
    poisoned(monkeypatch, range(5, 100))
    config = other(train={"max_skipped": 2, "checkpoint_steps": 1})
    with pytest.raises(RunError, match=r"2 updates in a row .* by step 7, .*: lower train.lr .*, or look for values"):
        train(config)
    assert steps(config.directory) == [1, 2, 3, 4, 5]
    assert [row["event"] for row in rows(config.directory, "events.jsonl")].count("rollback") == 1


def test_a_run_that_diverges_ends_and_says_what_to_change(other: Callable[..., RunConfig]) -> None:
    """Its first updates are finite, and no checkpoint is there to go back to."""
    with pytest.raises(RunError, match=r"3 updates in a row could not be made by step \d, .* \(now 1e\+30\)"):
        train(with_lr(other(train={"max_skipped": 3, "warm_steps": 8}), 1e30))


def test_a_run_whose_loss_is_not_finite_at_its_end_did_not_succeed(other: Callable[..., RunConfig]) -> None:
    config = with_lr(other(train={"max_skipped": 100}), 1e30)
    with pytest.raises(UnsoundEndError, match=r"^the loss is not finite at the end, after 8 steps: .* \(now 1e\+30\)"):
        train(config)
    assert steps(config.directory) == [4, 8]
    assert rows(config.directory, "events.jsonl")[-1]["event"] in ("end", "failed")


def with_lr(config: RunConfig, lr: float) -> RunConfig:
    """Beyond what a configuration may say, so that training diverges at once."""
    return config.model_copy(update={"train": config.train.model_copy(update={"lr": lr})})


def test_the_losses_of_constraints_count_at_the_end(
    monkeypatch: pytest.MonkeyPatch, other: Callable[..., RunConfig]
) -> None:
    """Every update was made, and yet what was averaged is of no use."""
    measure = DualSide.measure

    def without_number(side: DualSide, network: Any) -> Sums:
        sums = measure(side, network)
        return replace(sums, total=sums.total + np.array([0.0, np.nan]))

    monkeypatch.setattr(DualSide, "measure", without_number)
    config = other()
    with pytest.raises(UnsoundEndError, match="the loss is not finite at the end"):
        train(config)
    assert [row["skipped_updates"] for row in rows(config.directory, "metrics.jsonl")] == [0, 0, 0, 0]
