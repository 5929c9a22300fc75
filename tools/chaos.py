"""Kills random processes of real runs at random moments; each must end as a run does that nothing happened to.

python tools/chaos.py [--runs 5] [--seed 0] [--kills 2] [--out chaos] [--only worker-kill,...]

Each run is `cdt train` on two workers under Ray and DeepSpeed, on a Ray of its own, or on two nodes with addresses of
their own where nodes are to die. A kill hits a worker, the coordinator, the command itself or a node with all of its
processes, between two checkpoints or while one is being written; `cdt resume` goes on where the command has ended. At
the end weights, averages, multipliers and journal are compared, bit by bit; after a node that is not replaced, within
what another number of workers may change. It ends only processes that it started, by their id. Figures go to
OUT/chaos.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from chaos_processes import COORDINATOR, HEAD, PATIENCE_S, WORKER, Cluster, Command, named, wait_until
from safetensors.torch import load_file

from cdt.dual import replayed

CONFIG = Path(__file__).with_suffix(".yaml")
STEPS, EPOCH = 500, 4
SIGNALS = {
    "worker-kill": (WORKER, signal.SIGKILL),
    "worker-stop": (WORKER, signal.SIGSTOP),
    "coordinator-kill": (COORDINATOR, signal.SIGKILL),
    "coordinator-stop": (COORDINATOR, signal.SIGSTOP),
    "command-kill": (None, signal.SIGKILL),
    "command-term": (None, signal.SIGTERM),
}
"""To which process (None: the command) which signal goes."""
NODES = ("node-kill", "head-kill", "node-lost")
"""The second node, and another one joins; the head, and `cdt resume` goes on under a new one; the second, for good."""
KINDS = (*SIGNALS, *NODES)
TOLERANCE = 1e-5
"""Relative L2 per epoch that another number of workers may change weights and averages by."""
HEAD_S = 180
"""Within which the command has to notice that the head is gone."""


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


def rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


class Run:
    """One run and what is done to it."""

    def __init__(self, home: Path, name: str, cluster: Cluster | None = None, *overrides: str) -> None:
        self.home, self.name, self.directory, self.cluster = home, name, home / "runs" / name, cluster
        self.command = Command(home, cluster, "train", CONFIG.name, f"run.name={name}", *overrides)
        self.kills: list[Kill] = []

    def step(self) -> int:
        found = rows(self.directory / "metrics.jsonl")
        return found[-1]["step"] if found else 0

    def saving(self) -> bool:
        return any((self.directory / "checkpoints").glob(".step-*.partial"))

    def strike(self, kind: str, chance: random.Random) -> bool:
        """One kill at a random moment after new steps; whether the run had not come to its end before."""
        # One worker in place of two: only so many epochs that the tolerance means something.
        lasting = kind == "node-lost"
        awaited = STEPS - 120 if lasting else self.step() + chance.randrange(4, 40)
        wait_until(lambda: self.step() >= awaited or self.ended(), "new steps")
        if saving := not lasting and chance.random() < 0.5:
            wait_until(lambda: self.saving() or self.ended(), "a checkpoint")
        time.sleep(0 if lasting else chance.random() * (0.1 if saving else 2))
        if self.ended() or self.step() > STEPS - 60:
            return False
        kill = Kill(kind, self.saving(), self.step())
        seen, since, starts = len(rows(self.directory / "metrics.jsonl")), time.monotonic(), len(self._starts())
        self.kills.append(kill)
        self._blow(kind, chance)
        print(f"{self.name}: {kind} at step {kill.at}{' while saving' * kill.saving}", flush=True)
        wait_until(lambda: self._recovered(kind, seen, starts), f"steps after {kind}")
        kill.survived, kill.recovery_s = True, time.monotonic() - since
        if len(self._starts()) > starts:
            kill.again = max(0, kill.at - self._starts()[-1])
        return True

    def _blow(self, kind: str, chance: random.Random) -> None:
        cluster = self.cluster
        if kind in SIGNALS:
            name, number = SIGNALS[kind]
            families = [self.command, *(cluster.nodes.values() if cluster else ())]
            # A coordinator that was killed before may still be on its way back.
            targets = wait_until(lambda: named(families, name), name) if name else [self.command.process]
            chance.choice(targets).send_signal(number)
            if name is None:
                self.command.process.wait(PATIENCE_S)
                self._resume()
        elif cluster is not None and kind == "head-kill":
            cluster.lose(HEAD)
            self.command.process.wait(HEAD_S)
            cluster.end()
            self.cluster = Cluster()
            self._resume()
        elif cluster is not None:
            second = next(address for address in cluster.nodes if address != HEAD)
            (cluster.lose if kind == "node-lost" else cluster.replace)(second)

    def _resume(self) -> None:
        self.command.end()
        self.command = Command(self.home, self.cluster, "resume", f"runs/{self.name}")

    def _starts(self) -> list[int]:
        """The steps at which workers began."""
        return [row["step"] for row in rows(self.directory / "events.jsonl") if row["event"] == "start"]

    def _recovered(self, kind: str, seen: int, starts: int) -> bool:
        if self.ended():
            raise RuntimeError(f"{self.name} ended: {self.command.said()[-2000:]}")
        found = len(rows(self.directory / "metrics.jsonl")) - seen
        # Without a coordinator training goes on until it asks for the next multipliers.
        return found > 4 if kind.startswith("coordinator") else found > 0 and len(self._starts()) > starts

    def ended(self) -> bool:
        """A busy machine may not bring up Ray within its 30 seconds: then the same command is given again."""
        if self.command.process.poll() is None:
            return False
        if "Ray does not start" not in self.command.said():
            return True
        self.command.end()
        self.command = Command(self.home, self.cluster, *self.command.arguments)
        return False

    def finish(self) -> int:
        wait_until(self.ended, "the end")
        return self.command.process.wait()

    def end(self) -> None:
        self.command.end()
        if self.cluster is not None:
            self.cluster.end()


def differences(run: Run, calm: Run) -> list[str]:
    """In what two finished runs differ."""
    ours, theirs = (each.directory / "checkpoints" / f"step-{STEPS:09d}" for each in (run, calm))
    found = []
    lasting = [kill for kill in run.kills if kill.kind == "node-lost"]
    allowed = TOLERANCE * sum((STEPS - kill.at + kill.again) / EPOCH for kill in lasting)
    for name in ("weights.safetensors", "ema.safetensors"):
        distance = relative_distance(load_file(ours / name), load_file(theirs / name))
        if not distance <= allowed:  # nor when it is not a number
            found.append(f"{name} (relative L2 {distance:.2g}, allowed {allowed:.2g})")
        elif lasting:
            print(f"{run.name}: {name} within {distance:.2g} of the undisturbed run's", flush=True)
    if lasting:
        return found
    if json.loads((ours / "state.json").read_text()) != json.loads((theirs / "state.json").read_text()):
        found.append("state.json")
    journal = rows(run.directory / "dual.jsonl")
    if steps := replayed(journal).differing:
        found.append(f"dual.jsonl: other outcomes of the same dual step, at {steps}")
    once = {(row["step"], row["constraint"]): row for row in journal}
    if once != {(row["step"], row["constraint"]): row for row in rows(calm.directory / "dual.jsonl")}:
        found.append("dual.jsonl")
    return found


def relative_distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """L2 over all weights together; 0 for those that are the same bit by bit, and for no others."""
    if one.keys() != other.keys():
        return float("inf")
    if all(torch.equal(one[name], other[name]) for name in one):
        return 0.0
    ours, theirs = (torch.cat([weights[name].double().flatten() for name in sorted(one)]) for weights in (one, other))
    return float((ours - theirs).norm() / theirs.norm())


def summary(kills: Sequence[Kill], failures: Sequence[str]) -> str:
    lines = [f"{'kill':18} survived  first new step (median, longest)  steps recomputed (median, most)"]
    for kind in KINDS:
        mine = [kill for kill in kills if kill.kind == kind]
        if mine:
            times = [kill.recovery_s for kill in mine if kill.recovery_s is not None] or [float("nan")]
            steps = [kill.again for kill in mine]
            survived = f"{sum(kill.survived for kill in mine)} of {len(mine)}"
            lines.append(
                f"{kind:18} {survived:9} {median(times):8.1f} s {max(times):8.1f} s {median(steps):16.0f} {max(steps)}"
            )
    return "\n".join([*lines, *(f"FAILED {failure}" for failure in failures)])


def disturbed(home: Path, number: int, seed: int, kinds: list[str], calm: Run) -> tuple[list[Kill], str | None]:
    """One run with these kills in any order; what they did, and what went wrong."""
    chance = random.Random(f"{seed} {number}")
    if "node-lost" in kinds:  # what comes after it would have one worker
        kinds = ["node-lost"]
    cluster = Cluster() if set(kinds) & set(NODES) else None
    run = Run(home, f"run-{number}", cluster, *["run.min_workers=1"] * ("node-lost" in kinds))
    try:
        for kind in chance.sample(kinds, len(kinds)):
            if not run.strike(kind, chance):
                break
        if status := run.finish():
            return run.kills, f"{run.name}: exit status {status}: {run.command.said()[-2000:]}"
        found = differences(run, calm)
        return run.kills, f"{run.name}: differs from the undisturbed run in {', '.join(found)}" if found else None
    except (TimeoutError, RuntimeError, psutil.TimeoutExpired) as error:
        return run.kills, f"{run.name}: {error}"
    finally:
        run.end()


def chaos(home: Path, runs: int, seed: int, kills: int, kinds: Sequence[str]) -> int:
    from cdt.data.sources import SOURCES
    from cdt.data.write.shard import shard

    home.mkdir(parents=True)
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    shutil.copy(CONFIG, home)
    calm = Run(home, "calm")
    if status := calm.finish():
        raise RuntimeError(f"the undisturbed run ended with {status}: {calm.command.said()}")
    done: list[Kill] = []
    failures: list[str] = []
    for number in range(runs):
        began = time.monotonic()
        planned = [kinds[(number * kills + k + seed) % len(kinds)] for k in range(kills)]
        more, failure = disturbed(home, number, seed, planned, calm)
        done += more
        failures += [failure] if failure else []
        told = {"kills": [asdict(kill) for kill in done], "failures": failures, "runs": number + 1}
        (home / "chaos.json").write_text(json.dumps(told, indent=1))
        print(f"run-{number}: {failure or 'as undisturbed'}, {time.monotonic() - began:.0f} s", flush=True)
    print(summary(done, failures))
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--kills", type=int, default=2, help="in each run")
    parser.add_argument("--only", default=",".join(KINDS), help=f"kinds of kills: {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="directory to write")
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--only: {', '.join(unknown)}: choose from {', '.join(KINDS)}")
    if arguments.out.exists():
        parser.error(f"--out: {arguments.out} exists already")
    return chaos(arguments.out.resolve(), arguments.runs, arguments.seed, arguments.kills, kinds)


if __name__ == "__main__":
    sys.exit(main())
