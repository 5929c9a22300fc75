"""A run on two workers that is killed, resumed, interrupted, and still is the run that nothing happened to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdt.cluster.watchdog import START_S
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

pytestmark = pytest.mark.slow  # three starts of Ray

CONFIG = Path(__file__).parents[2] / "tools" / "chaos.yaml"
ENDLESS = ("train.warm_steps=8", "train.dual_steps=1000000", "run.hang_minutes=15")
PATIENCE_S = 200


class Command:
    """``cdt`` in a process and session of its own, as if typed at a terminal; it does not outlive the context."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._out, self._err = home / "out", home / "err"
        command = [sys.executable, "-m", "cdt", *arguments]
        with self._out.open("w") as out, self._err.open("w") as err:
            # A shell that starts the tests in the background makes them, and what they start, deaf to Ctrl-C.
            hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
            self.process = subprocess.Popen(
                command, cwd=home, stdout=out, stderr=err, start_new_session=True, preexec_fn=hears
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.interrupt()
            self.status()

    def interrupt(self) -> None:
        """Ctrl-C: the signal goes to all processes of the terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def status(self) -> int:
        return self.process.wait(PATIENCE_S)

    def said(self) -> tuple[str, str]:
        """Stdout and stderr."""
        return self._out.read_text(), self._err.read_text()


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes that a process has started, and those that they have."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended meanwhile
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {child: commandline(child) for child in found - {pid}}


def commandline(pid: int) -> str:
    """Empty when the process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(run: Path) -> list[int]:
    """Steps of the checkpoints that have their names, the last one last."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    shutil.copy(CONFIG, home / "hard.yaml")
    return home


@pytest.fixture(scope="module")
def killed(home: Path) -> tuple[str, str]:
    """What ``runs/hard``, which may not restart, prints when one of its workers is killed."""
    run = home / "runs" / "hard"
    with Command(home, "train", "hard.yaml", "run.max_restarts=0", *ENDLESS) as command:
        command.wait_until(lambda: len(saved(run)) > 1)
        kill_a_worker(command)
        assert command.status() == 1
    return command.said()


def kill_a_worker(command: Command) -> None:
    assert len(workers(command)) == 2
    os.kill(max(workers(command)), signal.SIGKILL)


def workers(command: Command) -> list[int]:
    started = descendants(command.process.pid)
    return [pid for pid, name in started.items() if name.startswith("ray::RayTrainWorker")]


@pytest.fixture(scope="module")
def interrupted(home: Path, killed: tuple[str, str]) -> tuple[str, str]:
    """What ``runs/hard`` prints when it is resumed, loses a worker, recovers by itself, and hears Ctrl-C."""
    run = home / "runs" / "hard"
    with Command(home, "resume", "runs/hard", "run.max_restarts=1") as command:
        for after in (lambda: kill_a_worker(command), lambda: None):
            before = saved(run)[-1]
            command.wait_until(lambda before=before: saved(run)[-1] > before + 20)
            after()
        started = descendants(command.process.pid)
        command.interrupt()
        pressed = time.monotonic()
        assert command.status() == 130
        assert time.monotonic() - pressed < 30
    time.sleep(2)
    # Ray's two agents see some seconds later that they are alone.
    assert [name for pid, name in started.items() if name == commandline(pid) and "Agent" not in name] == []
    return command.said()


def test_a_killed_worker_is_named_and_not_what_it_did_to_the_others(home: Path, killed: tuple[str, str]) -> None:
    out, err = killed
    first, second = err.splitlines()
    assert first.startswith("cdt train: worker ")
    assert "died: killed from outside" in first
    assert second == "continue with `cdt resume runs/hard`; the run's log is runs/hard/events.jsonl"
    assert len(out.strip().splitlines()) == 1  # the progress bar
    failed = [row for row in rows(home / "runs" / "hard" / "events.jsonl") if row["event"] == "failed"]
    assert [row["text"] for row in failed] == [first.removeprefix("cdt train: ")]


def test_ctrl_c_is_answered_in_one_line(interrupted: tuple[str, str]) -> None:
    out, err = interrupted
    assert err == (
        "cdt resume: interrupted; continue with `cdt resume runs/hard`; the run's log is runs/hard/events.jsonl\n"
    )
    said, *_progress = re.sub(r"\n(?! *hard)", "", out.strip()).splitlines()
    assert re.fullmatch(r"worker [01] died: killed from outside.*; restarting from step-\d{9}", said)


def test_a_worker_that_dies_is_replaced_and_the_journals_tell_of_it(home: Path, interrupted: tuple[str, str]) -> None:
    events = [row["event"] for row in rows(home / "runs" / "hard" / "events.jsonl")]
    assert events.count("restart") == 1
    assert events.count("start") == 3
    assert events.index("restart") > events.index("failed")


def test_it_stands_where_it_would_have_stood_undisturbed(home: Path, interrupted: tuple[str, str]) -> None:
    """Bit by bit: raw and averaged weights, where the streams stand, multipliers, and every row of the journal."""
    hard, calm = home / "runs" / "hard", home / "runs" / "calm"
    last = saved(hard)[-1]
    with Command(home, "train", "hard.yaml", "run.name=calm", *ENDLESS, f"train.dual_steps={last - 8}") as command:
        assert command.status() == 0, command.said()
    ours, theirs = (run / "checkpoints" / f"step-{last:09d}" for run in (hard, calm))
    for name in ("weights.safetensors", "ema.safetensors"):
        weights, undisturbed = load_file(ours / name), load_file(theirs / name)
        assert weights.keys() == undisturbed.keys()
        assert all(torch.equal(weights[key], undisturbed[key]) for key in weights)
    stands, stood = (json.loads((path / "state.json").read_text()) for path in (ours, theirs))
    assert stands | {"dual_steps": last - 8} == stood  # what was configured still to come is another number
    journal = rows(calm / "dual.jsonl")
    assert len(journal) == 2 * ((last - 8) // 4)
    disturbed = [row for row in rows(hard / "dual.jsonl") if row["step"] <= last]
    assert len(disturbed) >= len(journal)
    assert [row for number, row in enumerate(disturbed) if row not in disturbed[:number]] == journal


def test_a_worker_that_stops_before_it_trains_is_named_and_replaced(home: Path) -> None:
    """While it imports what it is to run, and the other one waits for it: neither has sent a heartbeat."""
    run = home / "runs" / "early"
    options = ["run.name=early", "run.hang_minutes=0.25", "train.warm_steps=8", "train.dual_steps=8"]

    def starting() -> list[int]:
        return [pid for pid in workers(command) if commandline(pid) == "ray::RayTrainWorker.init_train_context"]

    with Command(home, "train", "hard.yaml", *options) as command:
        command.wait_until(lambda: bool(starting()))
        stopped = starting()[-1]
        os.kill(stopped, signal.SIGSTOP)
        assert command.process.wait(START_S + PATIENCE_S) == 0, command.said()
    events = rows(run / "events.jsonl")
    (told,) = [row["text"] for row in events if row["event"] == "hang"]
    assert told.startswith("no heartbeat for 15 s from worker 0 ")
    assert f"(process {stopped}), last at step 0 in start" in told
    assert f"{stopped} stopped" in told
    assert events[-1]["event"] == "end"
