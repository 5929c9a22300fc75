"""When a checkpoint is saved, which are kept, and what an interrupt or a full disk leaves."""

from __future__ import annotations

import _thread
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import same_weights, steps

from cdt.checkpoints import saving
from cdt.config import RunConfig
from cdt.engine.engine import Engine
from cdt.errors import RunError
from cdt.runs.run import Run
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


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
