"""What steps are made of on this machine, and whole steps of one and two workers, for tools/scale_model.py --measured.

    python tools/bench/pieces.py OUT.json [--repeats 3]

Steps of a run in one process at a quarter and at half of a batch; what a collective of two processes takes; what the
update of a weight takes. Then runs of one and of two workers under Ray and DeepSpeed, on the whole batch, at which no
piece was measured. All of it is processor time, of the busiest rank where there are several: on a machine that others
use wall time says more about them. Everything is repeated in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from dual import classes

import cdt
from cdt.cluster.session import local_ray
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.dual import ALARMS, DualState, Sums, dual_step, journal_rows, journaled
from cdt.networks.build import build_network

CASES: dict[str, dict[str, Any]] = {
    "UNet, mostly arithmetic": {"batch": 64, "network": {"kind": "unet", "channels": [16, 32]}},
    "DiT, mostly parameters": {
        "batch": 32,
        "network": {"kind": "dit", "patch": 4, "width": 384, "depth": 6, "heads": 6},
    },
}
SHAPE = (1, 8, 8)
STEPS, LOG = 16, 2
PARTS = (4, 2)
"""Of the batch: the pieces are measured at a quarter and at half."""
CONSTRAINTS = 100_000
SMALL, LARGE = 2**10, 2**25
"""Bytes of the collectives that are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)  # what the processes started from here do
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.only:
        what, *rest = arguments.only
        {"steps": steps_here, "collectives": collectives}[what](arguments.out, *rest)
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard(SOURCES["digits"](), folder / "data")
        for repeat in range(arguments.repeats):
            found.append(repetition(folder, repeat))
            summary = {"cores": os.cpu_count(), "repeats": len(found), **middle(found), "all": found}
            arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
            print(f"repeat {repeat + 1}: load {os.getloadavg()[0]:.1f}", flush=True)


def repetition(folder: Path, repeat: int) -> dict[str, Any]:
    found: dict[str, Any] = {"collectives": together(folder, "collectives", 2, repeat)[0], **central()}
    (alone,) = together(folder, "steps", 1, repeat)
    for case, settings in CASES.items():
        batch, parameters = settings["batch"], count(case)
        found[case] = {"batch": batch, "parameters": parameters, "update_s": update_seconds(parameters), **alone[case]}
        with local_ray():  # one for both
            for workers in (1, 2):
                config = configuration(
                    folder, case, batch, workers, f"run-{repeat}-{list(CASES).index(case)}-{workers}"
                )
                found[case][f"run {workers}"] = step_seconds(config, workers_seconds)
    return found


def middle(found: list[Any]) -> Any:
    """The median of each figure over the repeats."""
    if isinstance(found[0], dict):
        return {name: middle([each[name] for each in found]) for name in found[0]}
    return statistics.median(found)


def configuration(folder: Path, case: str, batch: int, workers: int, name: str) -> cdt.RunConfig:
    return cdt.RunConfig.model_validate(
        {
            "data": {"shards": str(folder / "data")},
            "network": CASES[case]["network"],
            "train": {
                "warm_steps": 0,
                "dual_steps": STEPS,
                "log_steps": LOG,
                "checkpoint_steps": STEPS,
                "batch_size": batch,
                "grid_images": 0,
            },
            "run": {"workers": workers, "threads": 1, "dir": str(folder / "runs"), "name": name},
        }
    )


def step_seconds(config: cdt.RunConfig, clocks: Callable[[], dict[int, float]]) -> float:
    """Processor time per step in the second half of a run, of the process that took most."""
    seen: dict[int, dict[int, float]] = {}

    def hear(report: dict[str, Any]) -> None:
        if "step" in report and report["step"] not in seen:
            seen[report["step"]] = clocks()

    cdt.train(config, hear)
    first, last = min(step for step in seen if step >= STEPS // 2), max(step for step in seen if step < STEPS)
    spent = [seen[last][process] - seen[first][process] for process in seen[last] if process in seen[first]]
    return max(spent) / (last - first)


def own_seconds() -> dict[int, float]:
    return {os.getpid(): time.process_time()}


def workers_seconds() -> dict[int, float]:
    """Of the processes that train under this one's Ray."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                used = process.cpu_times()
                found[process.pid] = used.user + used.system
    return found


def together(folder: Path, what: str, number: int, repeat: int) -> list[Any]:
    """What ``number`` processes of this script answer that run at once."""
    outs = [folder / f"{what}-{repeat}-{number}-{rank}.json" for rank in range(number)]
    rest = [str(number), str(repeat), str(folder)]
    commands = [[sys.executable, __file__, str(out), "--only", what, str(rank), *rest] for rank, out in enumerate(outs)]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit(f"{what} failed")
    return [json.loads(out.read_text()) for out in outs]


def steps_here(out: Path, rank: str, number: str, repeat: str, place: str) -> None:
    found: dict[str, dict[str, float]] = {}
    for number_of_case, (case, settings) in enumerate(CASES.items()):
        for part in PARTS:
            batch = settings["batch"] // part
            config = configuration(Path(place), case, batch, 0, f"alone-{repeat}-{number_of_case}-{part}")
            found.setdefault(case, {})[f"alone {batch}"] = step_seconds(config, own_seconds)
    out.write_text(json.dumps(found))


def collectives(out: Path, rank: str, number: str, repeat: str, place: str) -> None:
    """Of two processes over gloo: seconds of a small one, and bytes of the ring per second."""
    from torch._C._distributed_c10d import FileStore

    store = FileStore(f"{place}/store-{repeat}", int(number))
    dist.init_process_group(
        "gloo", store=store, rank=int(rank), world_size=int(number), timeout=dt.timedelta(seconds=120)
    )
    seconds = {}
    for size in (SMALL, LARGE):
        tensor, times = torch.zeros(size // 4), 200 if size == SMALL else 12
        dist.all_reduce(tensor)
        began = time.process_time()
        for _ in range(times):
            dist.all_reduce(tensor)
        seconds[size] = (time.process_time() - began) / times
    answer = {"latency_s": seconds[SMALL], "bytes_per_s": (LARGE - SMALL) / (seconds[LARGE] - seconds[SMALL])}
    out.write_text(json.dumps(answer))
    dist.destroy_process_group()


def count(case: str) -> int:
    with torch.device("meta"):
        config = cdt.RunConfig.model_validate({"data": {"shards": "none"}, "network": CASES[case]["network"]})
        return sum(weight.numel() for weight in build_network(config.resolved_network, SHAPE).parameters())


def update_seconds(parameters: int) -> float:
    """AdamW and the moving average, on all of a network's parameters."""
    weights: list[torch.Tensor] = [torch.nn.Parameter(torch.zeros(parameters))]
    average = [torch.zeros(parameters)]
    weights[0].grad = torch.ones(parameters)
    optimizer, times = torch.optim.AdamW(weights), []
    for _ in range(8):
        began = time.process_time()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.1)  # pyright: ignore[reportPrivateImportUsage]
        times.append(time.process_time() - began)
    return statistics.median(times)


def central() -> dict[str, float]:
    """Per constraint, what a dual step takes; per byte, what the digest of a checkpoint; per parameter, new weights."""
    m, rng = CONSTRAINTS, np.random.default_rng(0)
    problem = classes(m)
    state, dual = DualState.first(np.zeros(m), len(ALARMS)), []
    for period in range(5):
        gaps = rng.normal(0, 0.1, m)
        began = time.process_time()
        after = dual_step(problem, state, Sums(10 * gaps, 10 * gaps**2, np.full(m, 10.0)))
        journal_rows(problem, after, period, journaled(problem, state, after))
        dual.append(time.process_time() - began)
        state = after
    payload, digests = bytes(2**26), []
    for _ in range(5):
        began = time.process_time()
        hashlib.sha256(payload).digest()
        digests.append((time.process_time() - began) / len(payload))
    case = max(CASES, key=count)
    config = cdt.RunConfig.model_validate({"data": {"shards": "none"}, "network": CASES[case]["network"]})
    began = time.process_time()
    build_network(config.resolved_network, SHAPE)
    return {
        "dual_s": statistics.median(dual) / m,
        "hash_s": statistics.median(digests),
        "build_s": (time.process_time() - began) / count(case),
    }


if __name__ == "__main__":
    main()
