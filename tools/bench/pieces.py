"""What steps are made of on this machine, and whole steps of one and two workers, for tools/scale_model.py --measured.

    python tools/bench/pieces.py OUT.json [--repeats 3]

Steps of one process at a quarter and at half of the batch, alone and beside another process that does the same; what a
collective of two processes takes; what an update of a parameter takes. Then runs of one and two workers under Ray and
DeepSpeed, on batches that no piece was measured at. Medians of wall time per report of a run; all of it is repeated in
turn, as the load of a machine changes.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import cdt
from cdt.cluster.session import local_ray
from cdt.data.shard import shard
from cdt.data.sources import SOURCES
from cdt.dual import ALARMS, DualProblem, DualState, Sums, dual_step, journal_rows, journaled
from cdt.networks import build_network

CASES: dict[str, dict[str, Any]] = {
    "UNet, mostly arithmetic": {"batch": 64, "network": {"kind": "unet", "channels": [16, 32]}},
    "DiT, mostly parameters": {
        "batch": 32,
        "network": {"kind": "dit", "patch": 4, "width": 384, "depth": 6, "heads": 6},
    },
}
SHAPE = (1, 8, 8)
STEPS, LOG = 24, 2
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
    one, other = together(folder, "steps", 2, repeat)
    for case, settings in CASES.items():
        batch, parameters = settings["batch"], count(case)
        found[case] = {"batch": batch, "parameters": parameters, "update_s": update_seconds(parameters)}
        for part in PARTS:
            size = str(batch // part)
            found[case][f"alone {size}"] = alone[case][size]
            found[case][f"beside {size}"] = max(one[case][size], other[case][size])
        with local_ray():  # one for both
            for workers in (1, 2):
                found[case][f"run {workers}"] = run_seconds(folder, case, batch, workers, f"run-{repeat}")
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


def step_seconds(config: cdt.RunConfig) -> float:
    """The median over the reports in the second and third quarter of a run."""
    lines = (config.directory / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["samples_per_s"] for line in lines]
    quarter = len(rates) // 4
    return config.train.batch_size / statistics.median(rates[quarter : 3 * quarter])


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
    """Of one process, in step with the others."""
    found: dict[str, dict[str, float]] = {}
    for case, settings in CASES.items():
        for part in PARTS:
            name = f"{list(CASES).index(case)}-{part}-{number}-{repeat}"
            meet(Path(place) / name, rank, int(number))
            config = configuration(Path(place), case, settings["batch"] // part, 0, f"{name}-{rank}")
            cdt.train(config)
            found.setdefault(case, {})[str(settings["batch"] // part)] = step_seconds(config)
    out.write_text(json.dumps(found))


def meet(place: Path, rank: str, number: int) -> None:
    """Waits until so many processes have come to a place."""
    place.mkdir(exist_ok=True)
    (place / rank).touch()
    while len(list(place.iterdir())) < number:
        time.sleep(0.01)


def run_seconds(folder: Path, case: str, batch: int, workers: int, name: str) -> dict[str, float]:
    """A step of workers under Ray, and what lies before the first."""
    config = configuration(folder, case, batch, workers, f"{name}-{list(CASES).index(case)}-{workers}")
    began = time.time()
    cdt.train(config)
    events = [json.loads(line) for line in (config.directory / "events.jsonl").read_text().splitlines()]
    start = next(row["time"] for row in events if row["event"] == "start")
    return {"step_s": step_seconds(config), "start_s": start - began}


def collectives(out: Path, rank: str, number: str, repeat: str, place: str) -> None:
    """Of two processes over gloo: seconds before anything moves, and bytes of the ring per second."""
    from torch._C._distributed_c10d import FileStore

    store = FileStore(f"{place}/store-{repeat}", int(number))
    dist.init_process_group(
        "gloo", store=store, rank=int(rank), world_size=int(number), timeout=dt.timedelta(seconds=120)
    )
    seconds = {}
    for size in (SMALL, LARGE):
        tensor, times = torch.zeros(size // 4), []
        for _ in range(30 if size == SMALL else 12):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - began)
        seconds[size] = statistics.median(times)
    answer = {"latency_s": seconds[SMALL], "bytes_per_s": (LARGE - SMALL) / (seconds[LARGE] - seconds[SMALL])}
    out.write_text(json.dumps(answer))
    dist.destroy_process_group()


def count(case: str) -> int:
    with torch.device("meta"):
        config = cdt.RunConfig.model_validate({"data": {"shards": "none"}, "network": CASES[case]["network"]})
        return sum(weight.numel() for weight in build_network(config.network, SHAPE).parameters())


def update_seconds(parameters: int) -> float:
    """AdamW and the moving average, on all of a network's parameters."""
    weights: list[torch.Tensor] = [torch.nn.Parameter(torch.zeros(parameters))]
    average = [torch.zeros(parameters)]
    weights[0].grad = torch.ones(parameters)
    optimizer, times = torch.optim.AdamW(weights), []
    for _ in range(8):
        began = time.perf_counter()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.1)  # pyright: ignore[reportPrivateImportUsage]
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def central() -> dict[str, float]:
    """Per constraint, what a dual step takes; per byte, what the digest of a checkpoint; per parameter, new weights."""
    m, rng = CONSTRAINTS, np.random.default_rng(0)
    problem = DualProblem(
        names=tuple(f"class {i}" for i in range(m)),
        shares=np.full(m, 1 / m),
        baseline=np.full(m, 10.0),
        thresholds=np.full(m, 9.9),
        rules=np.array(["mass"] * m),
        etas=np.full(m, 0.02),
        equal=np.zeros(m, dtype=bool),
        generated=np.zeros(m, dtype=bool),
        kp=np.zeros(m),
        cap=10.0,
    )
    state, dual = DualState.first(np.zeros(m), len(ALARMS)), []
    for period in range(5):
        gaps = rng.normal(0, 0.1, m)
        began = time.perf_counter()
        after = dual_step(problem, state, Sums(10 * gaps, 10 * gaps**2, np.full(m, 10.0)))
        journal_rows(problem, after, period, journaled(problem, state, after))
        dual.append(time.perf_counter() - began)
        state = after
    payload, digests = bytes(2**26), []
    for _ in range(5):
        began = time.perf_counter()
        hashlib.sha256(payload).digest()
        digests.append((time.perf_counter() - began) / len(payload))
    case = max(CASES, key=count)
    config = cdt.RunConfig.model_validate({"data": {"shards": "none"}, "network": CASES[case]["network"]})
    began = time.perf_counter()
    build_network(config.network, SHAPE)
    return {
        "dual_s": statistics.median(dual) / m,
        "hash_s": statistics.median(digests),
        "build_s": (time.perf_counter() - began) / count(case),
    }


if __name__ == "__main__":
    main()
