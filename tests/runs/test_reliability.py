"""Checkpoints kept, passed over, due by the clock; notices to leave; one process at a time; where a run stands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from cdt.checkpoints.checkpoint import complete_checkpoints, damage, newest_sound, read_weights
from cdt.cluster.restarts import WorkerDiedError, persist
from cdt.config import RunConfig
from cdt.errors import InputError, RunError, Terminated
from cdt.runs.presence import SIGN, SILENT_S, at_work, check_idle, who_works
from cdt.runs.run import Run
from cdt.runs.start import resume, train
from cdt.runs.status import describe_status
from cdt.training import worker
from cdt.training.job import Job
from cdt.training.step import train_step

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in ``data``, and the run ``whole`` with checkpoints at steps 2, 4, 6 and 8."""
    home = tmp_path_factory.mktemp("home")
    tiny.write_shards(home / "data")
    train(tiny.config(home / "data", home / "whole", train={"checkpoint_steps": 2}))
    return home


@pytest.fixture
def whole(home: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(home / "whole", tmp_path / "whole"))


@pytest.fixture
def other(home: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    return lambda **sections: tiny.config(home / "data", tmp_path / "runs" / "other", **sections)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(run / "checkpoints")]


def same_weights(one: Path, other: Path) -> bool:
    pairs = [[read_weights(Run(run).checkpoint, raw) for run in (one, other)] for raw in (False, True)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a | b)


def flip(file: Path) -> None:
    """One bit in the middle; the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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
    assert told[0].endswith("contents differ from its manifest; it is passed over")
    assert same_weights(whole, home / "whole")
    assert newest_sound(checkpoints) == (checkpoints / "step-000000008", [])


def test_a_run_does_not_begin_anew_because_all_its_checkpoints_are_damaged(whole: Path) -> None:
    for path in (whole / "checkpoints").iterdir():
        flip(path / "state.json")
    with pytest.raises(RunError, match=r"no checkpoint is intact; step-000000008 is damaged: state.json"):
        resume(whole)


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


def test_the_newest_the_best_and_the_ends_of_phases_are_kept(other: Callable[..., RunConfig]) -> None:
    config = other(train={"checkpoint_steps": 1, "keep_checkpoints": 2})
    left = config.directory / "checkpoints" / ".step-000000003.partial"

    def interrupted_save(report: dict[str, Any]) -> None:
        if report["step"] == 4:
            left.mkdir(parents=True, exist_ok=True)

    train(config, interrupted_save)
    found = steps(config.directory)
    best = int(Run(config.directory, "best").checkpoint.name.removeprefix("step-"))
    assert found == sorted({4, 7, 8, best})
    assert not left.exists()


def test_the_clock_saves_too(other: Callable[..., RunConfig]) -> None:
    """At each report, after a thousandth of a second."""
    config = other(train={"checkpoint_minutes": 1e-3 / 60})
    train(config)
    assert steps(config.directory) == [2, 4, 6, 8]


def terminating(step: int) -> Callable[[dict[str, Any]], None]:
    def on_progress(report: dict[str, Any]) -> None:
        if report["step"] == step and "loss" in report:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def test_at_sigterm_it_saves_and_leaves_and_goes_on_as_if_nothing_had_been(
    home: Path, other: Callable[..., RunConfig]
) -> None:
    config = other()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="continue with `cdt resume"):
        train(config, terminating(6))
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps(config.directory) == [4, 6]
    last = rows(config.directory, "events.jsonl")[-1]
    assert (last["event"], last["text"]) == ("left", "asked to leave: saved after 6 of 8 steps")
    resume(config.directory)
    assert same_weights(config.directory, home / "whole")
    assert rows(config.directory, "dual.jsonl") == rows(home / "whole", "dual.jsonl")


def test_what_batches_said_before_a_save_in_mid_period_is_not_forgotten(
    other: Callable[..., RunConfig],
) -> None:
    both = {
        "four": {"class": 4, "max_loss": 50.0, "window": 0.5},
        "five": {"class": 5, "max_loss": 50.0, "window": 0.5},
    }
    settings = {"constraints": both, "dual": {"estimate": "training"}, "train": {"log_steps": 1}}
    config = other(**settings)
    with pytest.raises(Terminated):
        train(config, terminating(7))
    assert steps(config.directory) == [4, 7]
    resume(config.directory)
    calm = config.model_copy(update={"run": config.run.model_copy(update={"name": "calm"})})
    train(calm)
    assert same_weights(config.directory, calm.directory)
    assert rows(config.directory, "dual.jsonl") == rows(calm.directory, "dual.jsonl")
    assert Run(config.directory).state == Run(calm.directory).state


def test_a_notice_at_the_last_step_comes_too_late(other: Callable[..., RunConfig]) -> None:
    config = other()
    assert train(config, terminating(8)).state.step == 8
    assert rows(config.directory, "events.jsonl")[-1]["event"] == "end"


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work on ``run``."""
    code = (
        "import sys, time; from pathlib import Path; from cdt.runs.presence import at_work\n"
        "with at_work(Path('run')): print('here', flush=True); time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_of_two_processes_the_second_is_refused_until_the_first_is_dead(
    stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match=rf"{run} is being trained by process {stranger.pid} on "), at_work(run):
        pass
    stranger.kill()
    stranger.wait()
    assert (run / SIGN).exists()
    with at_work(run):
        found = who_works(run)
        assert found is not None
        assert found.pid == os.getpid()
        check_idle(run)
    assert not (run / SIGN).exists()


def test_a_process_elsewhere_is_dead_when_it_has_been_silent(tmp_path: Path) -> None:
    sign = tmp_path / SIGN
    sign.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    with pytest.raises(InputError, match=r"process 1 on elsewhere; if that machine is gone, delete .*running.json"):
        check_idle(tmp_path)
    past = sign.stat().st_mtime - SILENT_S - 1
    os.utime(sign, (past, past))
    check_idle(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": "x"}'])
def test_a_sign_that_cannot_be_read_is_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / SIGN).write_text(content)
    check_idle(tmp_path)


def test_the_status_of_a_run_that_is_done(home: Path) -> None:
    first, second, third, fourth, fifth = describe_status(home / "whole")
    assert first == f"{home / 'whole'}: complete"
    assert second.startswith("  step 8 of 8, loss ")
    assert third.startswith("  last checkpoint: step 8, ")
    assert third.endswith("; 4 are kept")
    assert fourth == "  started 1 time, 0 of them after a worker had died"
    assert fifth.endswith("end: 8 steps done")


def test_the_status_tells_what_was_done_again_and_whether_it_came_out_as_before(whole: Path) -> None:
    journal = whole / "dual.jsonl"
    again = rows(whole, "dual.jsonl")[-2:]
    for nudge, told in ((0.0, "identical results"), (1e-12, "different results at 1, first at step 8")):
        with journal.open("a") as file:
            file.writelines(
                json.dumps(row | {"lambda": row["lambda"] + nudge * (1 + row["lambda"])}) + "\n" for row in again
            )
        assert f"  1 dual step was recomputed after an interruption, with {told}" in list(describe_status(whole))


def test_the_status_of_a_run_under_way_and_of_one_that_was_left(other: Callable[..., RunConfig]) -> None:
    config = other()
    seen: list[str] = []
    ask = terminating(6)

    def look(report: dict[str, Any]) -> None:
        if not seen:
            thread = threading.Thread(target=lambda: seen.extend(describe_status(config.directory)))
            thread.start()
            thread.join()
        ask(report)

    with pytest.raises(Terminated):
        train(config, look)
    assert seen[0].startswith(f"{config.directory}: running, process {os.getpid()} on ")
    assert seen[2] == "  no checkpoint yet"
    after = list(describe_status(config.directory))
    assert after[0] == f"{config.directory}: not running; continue with `cdt resume {config.directory}`"
    assert after[1].startswith("  step 6 of 8, loss ")
