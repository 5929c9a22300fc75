"""Kills random processes of real runs at random moments; each must end as a run does that nothing happened to.

python tools/chaos.py [--runs 5] [--seed 0] [--kills 3] [--out chaos] [--only worker-kill,...]

Each run is `cdt train` on two workers under Ray and DeepSpeed. A kill hits a worker, the coordinator or the command
itself, by SIGKILL, SIGSTOP or SIGTERM, between two checkpoints or while one is being written; `cdt resume` goes on
where the command itself has ended. At the end weights, averages, multipliers and journal are compared, bit by bit. It
ends only processes that it started, by their id. Figures go to OUT/chaos.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

CONFIG = """
run: {workers: 2, threads: 1, max_restarts: 10, hang_minutes: 0.25}
data: {shards: data, epoch_samples: 64}
network: {kind: dit, patch: 4, width: 64, depth: 2, heads: 2}
constraints:
  four: {class: 4, min_frequency: 0.2}
  rare: {class: [5, 7], max_loss: 300}
probe: {draws: 16}
train: {batch_size: 16, warm_steps: 200, dual_steps: 300, checkpoint_steps: 20, log_steps: 2, lr: 0.002, grid_images: 0}
"""
STEPS = 500
PATIENCE_S = 900
KILLS = {
    "worker-kill": ("ray::RayTrainWorker", signal.SIGKILL),
    "worker-stop": ("ray::RayTrainWorker", signal.SIGSTOP),
    "coordinator-kill": ("ray::Coordinator", signal.SIGKILL),
    "coordinator-stop": ("ray::Coordinator", signal.SIGSTOP),
    "command-kill": (None, signal.SIGKILL),
    "command-term": (None, signal.SIGTERM),
}
"""Of which process (None: the command), by which signal."""


@dataclass
class Kill:
    """What one kill did."""

    kind: str
    saving: bool
    """Whether it came while a checkpoint was being written."""
    at: int
    """The last step that was reported."""
    survived: bool = False
    recovery_s: float | None = None
    """Until the first step that was reported after it."""
    again: int = 0
    """Reported steps that were done once more."""


class Command:
    """``cdt`` in a session of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home, self.arguments = home, arguments
        with (home / "output.txt").open("w") as output:
            command = [sys.executable, "-m", "cdt", *arguments]
            self.process = psutil.Popen(command, cwd=home, stdout=output, stderr=output, start_new_session=True)
        self._started: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """It and all that it has started; those that it left behind, too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started |= {child.pid: child for child in self.process.children(recursive=True)}
        return [process for process in self._started.values() if process.is_running()]

    def named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.family():
            try:
                if process.cmdline()[0].startswith(name):
                    found.append(process)
            except (psutil.Error, IndexError):
                continue
        return sorted(found, key=lambda process: process.pid)

    def said(self) -> str:
        return (self.home / "output.txt").read_text()

    def end(self) -> None:
        """Whatever is left of it."""
        for process in (*self.family(), self.process):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


def rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.02)
    return found


class Run:
    """One run and what is done to it."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name, self.directory = home, name, home / "runs" / name
        self.command = Command(home, "train", "hard.yaml", f"run.name={name}")
        self.kills: list[Kill] = []

    def step(self) -> int:
        found = rows(self.directory / "metrics.jsonl")
        return found[-1]["step"] if found else 0

    def saved(self) -> int:
        return max((int(path.name[5:]) for path in (self.directory / "checkpoints").glob("step-*")), default=0)

    def saving(self) -> bool:
        return any((self.directory / "checkpoints").glob(".step-*.partial"))

    def strike(self, kind: str, chance: random.Random) -> bool:
        """One kill at a random moment after new steps; whether the run had not come to its end before."""
        name, number = KILLS[kind]
        before, after = self.step(), chance.randrange(4, 40)
        wait_until(lambda: self.step() >= before + after or self.ended(), "new steps")
        if saving := chance.random() < 0.5:
            wait_until(lambda: self.saving() or self.ended(), "a checkpoint")
        time.sleep(chance.random() * (0.1 if saving else 2))
        if self.ended() or self.step() > STEPS - 60:
            return False
        self.command.family()
        targets = [self.command.process] if name is None else self.command.named(name)
        kill = Kill(kind, self.saving(), self.step())
        seen, since = len(rows(self.directory / "metrics.jsonl")), time.monotonic()
        starts = self._starts()
        chance.choice(targets).send_signal(number)
        self.kills.append(kill)
        print(f"{self.name}: {kind} at step {kill.at}{' while saving' * kill.saving}", flush=True)
        if name is None:
            self.command.process.wait(PATIENCE_S)
            self.command = Command(self.home, "resume", f"runs/{self.name}")
        wait_until(lambda: self._recovered(kind, seen, starts), f"steps after {kind}")
        kill.survived, kill.recovery_s = True, time.monotonic() - since
        if self._starts() > starts:
            kill.again = max(0, kill.at - self._begun())
        return True

    def _starts(self) -> int:
        return sum(row["event"] == "start" for row in rows(self.directory / "events.jsonl"))

    def _begun(self) -> int:
        """Where the last start began."""
        started = [row["step"] for row in rows(self.directory / "events.jsonl") if row["event"] == "start"]
        return started[-1]

    def _recovered(self, kind: str, seen: int, starts: int) -> bool:
        if self.ended():
            raise RuntimeError(f"{self.name} ended: {self.command.said()[-2000:]}")
        found = len(rows(self.directory / "metrics.jsonl")) - seen
        # Without a coordinator training goes on until it asks for the next multipliers.
        return found > 4 if kind.startswith("coordinator") else found > 0 and self._starts() > starts

    def ended(self) -> bool:
        """A busy machine may not bring up Ray within its 30 seconds: then the same command is given again."""
        if self.command.process.poll() is None:
            return False
        if "Ray does not start" not in self.command.said():
            return True
        self.command.end()
        self.command = Command(self.home, *self.command.arguments)
        return False

    def finish(self) -> int:
        wait_until(self.ended, "the end")
        return self.command.process.wait()


def differences(run: Path, calm: Path) -> list[str]:
    """In what two finished runs differ."""
    ours, theirs = (path / "checkpoints" / f"step-{STEPS:09d}" for path in (run, calm))
    found = []
    for name in ("weights.safetensors", "ema.safetensors"):
        one, other = load_file(ours / name), load_file(theirs / name)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            found.append(name)
    if json.loads((ours / "state.json").read_text()) != json.loads((theirs / "state.json").read_text()):
        found.append("state.json")
    journal = rows(run / "dual.jsonl")
    once = [row for number, row in enumerate(journal) if row not in journal[:number]]
    if sorted(once, key=lambda row: row["step"]) != rows(calm / "dual.jsonl"):
        found.append("dual.jsonl")
    return found


def summary(kills: list[Kill], failures: list[str]) -> str:
    lines = [f"{'kill':18} survived  first new step (median, longest)  steps done again (median, most)"]
    for kind in KILLS:
        mine = [kill for kill in kills if kill.kind == kind]
        if mine:
            times = [kill.recovery_s for kill in mine if kill.recovery_s is not None] or [float("nan")]
            steps = [kill.again for kill in mine]
            survived = f"{sum(kill.survived for kill in mine)} of {len(mine)}"
            lines.append(
                f"{kind:18} {survived:9} {median(times):8.1f} s {max(times):8.1f} s {median(steps):16.0f} {max(steps)}"
            )
    return "\n".join([*lines, *(f"FAILED {failure}" for failure in failures)])


def chaos(home: Path, runs: int, seed: int, kills: int, kinds: list[str]) -> int:
    from cdt.data.shard import shard
    from cdt.data.sources import SOURCES

    home.mkdir(parents=True)
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    (home / "hard.yaml").write_text(CONFIG)
    calm = Run(home, "calm")
    if status := calm.finish():
        raise RuntimeError(f"the undisturbed run ended with {status}: {calm.command.said()}")
    done: list[Kill] = []
    failures: list[str] = []
    for number in range(runs):
        chance, run = random.Random(f"{seed} {number}"), Run(home, f"run-{number}")
        try:
            planned = [kinds[(number * kills + k + seed) % len(kinds)] for k in range(kills)]
            for kind in chance.sample(planned, len(planned)):
                if not run.strike(kind, chance):
                    break
            if status := run.finish():
                failures.append(f"{run.name}: exit status {status}")
            elif found := differences(run.directory, calm.directory):
                failures.append(f"{run.name}: differs from the undisturbed run in {', '.join(found)}")
        except (TimeoutError, RuntimeError, psutil.TimeoutExpired) as error:
            failures.append(f"{run.name}: {error}")
        finally:
            run.command.end()
        done += run.kills
        told = {"kills": [asdict(kill) for kill in done], "failures": failures, "runs": number + 1}
        (home / "chaos.json").write_text(json.dumps(told, indent=1))
    print(summary(done, failures))
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--kills", type=int, default=3, help="in each run")
    parser.add_argument("--only", default=",".join(KILLS), help=f"kinds of kills: {', '.join(KILLS)}")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="directory to write")
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KILLS):
        parser.error(f"--only: {', '.join(unknown)}: choose from {', '.join(KILLS)}")
    if arguments.out.exists():
        parser.error(f"--out: {arguments.out} exists already")
    return chaos(arguments.out.resolve(), arguments.runs, arguments.seed, arguments.kills, kinds)


if __name__ == "__main__":
    sys.exit(main())
