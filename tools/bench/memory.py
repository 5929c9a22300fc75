"""The memory estimate of a dry run against measured peaks: python tools/bench/memory.py [--only 1] [--json FILE]

For networks of 1, 20 and 80 million weights, ZeRO stages 0 to 3, one and two ranks: the largest resident memory of a
rank above what it has once the libraries have trained a tiny network, in three parts: setting up, then steps and a
probe, then a save. Every case is a process of its own, on the CPU. The C library is told to give back at once what is
freed: by itself it keeps some, and what is measured is then more than what is used.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._C._distributed_c10d import FileStore

from cdt.checkpoints.checkpoint import TrainState
from cdt.checkpoints.saving import Saver
from cdt.data.stream import Batch, StreamState
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, start_deepspeed
from cdt.engine.memory import activation_bytes, peak_bytes, state_bytes
from cdt.engine.ranks import Ranks
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig
from cdt.training.schedule import TrainConfig
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

SHAPE = (1, 8, 8)
MIB = 2**20
STEPS = 3
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Case(NamedTuple):
    millions: int
    stage: int
    world: int
    precision: str

    @property
    def network(self) -> DiTConfig:
        width = {1: 128, 20: 512, 80: 1024}[self.millions]
        return DiTConfig(patch=4, width=width, depth=4, heads=4)

    @property
    def batch(self) -> int:
        """Per rank: enough for activations that count."""
        return {1: 1024, 20: 256, 80: 64}[self.millions]

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig.model_validate({"zero_stage": self.stage, "precision": self.precision})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", default=[1, 20, 80], help="sizes, in millions of weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures, too")
    arguments = parser.parse_args()
    if not os.environ.keys() >= AT_ONCE.keys():  # it is read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AT_ONCE})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = [Case(*each) for each in itertools.product(arguments.only, range(4), (1, 2), ("fp32",))]
    cases += [Case(20, stage, 2, "bf16") for stage in range(4) if 20 in arguments.only]
    rows = []
    for case in cases:
        rows.append({**case._asdict(), **estimated(case), **measured(case)})
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=130).print(table(rows))


def estimated(case: Case) -> dict[str, float]:
    with torch.device("meta"):
        network = build_network(case.network, SHAPE)
    parameters = sum(weight.numel() for weight in network.parameters())
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    parts = state_bytes(parameters, parameters, case.engine, case.world)
    parts["activations"] = activation_bytes(network.to(dtype), SHAPE, case.batch, dtype)
    return {
        "parameters": parameters,
        "estimate": peak_bytes(parts, case.engine) / MIB,
        "of activations": parts["activations"] / MIB,
    }


def measured(case: Case) -> dict[str, float]:
    """MiB of the rank that had most, by part."""
    context = multiprocessing.get_context("fork")  # what is imported is shared, and no part of what is measured
    with tempfile.TemporaryDirectory() as place:
        ranks = [context.Process(target=work, args=(case, rank, Path(place))) for rank in range(case.world)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        found = [json.loads(path.read_text()) for path in Path(place).glob("rank-*.json")]
    if len(found) < case.world:
        raise SystemExit(f"{case} failed")
    return {name: max(each[name] for each in found) for name in found[0]}


def work(case: Case, rank: int, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    store = FileStore(str(place / "store"), case.world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.world, timeout=dt.timedelta(minutes=5))
    start_deepspeed()
    parts = Parts()
    train(case._replace(millions=1), DiTConfig(patch=4, width=16, depth=1, heads=2), 4, place / "tiny", parts)
    gc.collect()
    parts = Parts()
    train(case, case.network, case.batch, place / "whole", parts)
    (place / f"rank-{rank}.json").write_text(json.dumps(parts.peaks))


class Parts:
    """Peaks of this process's resident memory by part, in MiB above that at the beginning."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self._before = self._resident("VmRSS")

    def during(self, name: str, part: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        result = part()
        self.peaks[name] = self._resident("VmHWM") - self._before
        return result

    def _resident(self, key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def train(case: Case, network: DiTConfig, batch: int, place: Path, parts: Parts) -> None:
    ranks, diffusion = Ranks.current(), Diffusion.from_config(DiffusionConfig())
    schedule = TrainConfig(batch_size=batch * case.world, warm_steps=STEPS, dual_steps=0)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return build_network(network, SHAPE)

    def set_up() -> tuple[Engine, Ema]:
        engine = Engine(build, case.engine, schedule, ranks)
        return engine, Ema(engine)

    engine, ema = parts.during("set-up", set_up)
    sums = PeriodSums(torch.zeros(1).double().numpy(), diffusion, ranks.device)

    def steps() -> None:
        for step in range(STEPS):
            train_step(
                engine, diffusion, samples(step, batch, ranks.rank), sums, learning_rate=1e-4, seed=1, batch_size=batch
            )
            ema.update(0.9)

    def probe() -> None:
        with engine.network_with(ema.fragments) as copy:
            copy(torch.zeros(batch, *SHAPE), torch.zeros(batch))

    def save() -> None:
        saver = Saver(place, engine, ema, ranks)
        saver.begin(TrainState(STEPS, ranks.world, 0, StreamState(0, {}, [])))
        saver.finish()
        saver.close()

    parts.during("steps", steps)
    parts.during("probe", probe)
    parts.during("save", save)


def samples(step: int, batch: int, rank: int) -> Batch:
    positions = torch.arange(batch) + (2 * step + rank) * batch
    zeros = torch.zeros(batch, dtype=torch.long)
    return Batch(torch.zeros(batch, *SHAPE), positions, zeros, zeros, torch.ones(batch), positions)


def table(rows: list[dict[str, Any]]) -> Table:
    printed = Table(box=None)
    for column in (
        "weights",
        "stage",
        "ranks",
        "",
        "estimate",
        "of activations",
        "set-up",
        "steps",
        "probe",
        "save",
        "ratio",
    ):
        printed.add_column(column, justify="right")
    for row in rows:
        figures = [row[name] for name in ("estimate", "of activations", "set-up", "steps", "probe", "save")]
        ratio = row["estimate"] / max(row["set-up"], row["steps"], row["probe"])
        printed.add_row(
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["stage"]),
            str(row["world"]),
            row["precision"],
            *(f"{figure:,.0f}" for figure in figures),
            f"{ratio:.2f}",
        )
    return printed


if __name__ == "__main__":
    main()
