"""A training step against plain PyTorch: what DeepSpeed, the mixture stream and the constraints cost.

    python tools/bench/step.py [--channels 32 64] [--steps 20] [--repeats 5]

The plain loop has the same network, loss, clipping, AdamW and moving average, on images in memory and noise from
torch's own generator. The others are whole runs of one worker in this process, of which the steps between the first and
the last third count: no start, probe or checkpoint. Ratios are taken within one repeat; medians and ranges over the
repeats. CPU time on one thread, since wall time on a shared machine says little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import cdt
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader, normalise
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.diffusion.loss import Diffusion, noise
from cdt.networks.build import build_network

ARMS: dict[str, dict[str, Any]] = {
    "stage 0": {"engine": {"zero_stage": 0}},
    "stage 1": {"engine": {"zero_stage": 1}},
    "stage 2": {"engine": {"zero_stage": 2}},
    "stage 3": {"engine": {"zero_stage": 3}},
    "stage 1, 10 constraints": {"constraints": {f"class {c}": {"class": str(c), "max_loss": 1e3} for c in range(10)}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"plain PyTorch": []} | {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard(SOURCES["digits"](), folder / "data")
        for repeat in range(arguments.repeats):
            for number, (name, sections) in enumerate(ARMS.items()):
                config = configuration(folder, f"{repeat}-{number}", arguments, sections)
                found[name].append(milliseconds(config))
            found["plain PyTorch"].append(plain(configuration(folder, "plain", arguments, {}), arguments.steps))
    Console(width=100).print(table(found))


def configuration(folder: Path, name: str, arguments: argparse.Namespace, sections: dict[str, Any]) -> cdt.RunConfig:
    steps = arguments.steps
    tree = {
        "data": {"shards": str(folder / "data")},
        "network": {"kind": "unet", "channels": arguments.channels},
        "train": {
            "warm_steps": 0,
            "dual_steps": 3 * steps,
            "log_steps": steps,
            "checkpoint_steps": 4 * steps,
            "batch_size": arguments.batch_size,
            "grid_images": 0,
        },
        "dual": {"period": 3 * steps},
        "run": {"workers": 0, "threads": 1, "dir": str(folder / "runs"), "name": name},
    }
    return cdt.RunConfig.model_validate(tree | sections)


def milliseconds(config: cdt.RunConfig) -> float:
    """Of CPU time per step, in the middle third of a run."""
    clock: dict[int, float] = {}

    def hear(report: dict[str, Any]) -> None:
        clock.setdefault(report["step"], time.process_time())

    cdt.train(config, hear)
    steps = config.train.log_steps
    return 1000 * (clock[2 * steps] - clock[steps]) / steps


def plain(config: cdt.RunConfig, steps: int) -> float:
    """The same without cdt's engine and stream: milliseconds of CPU time per step, over the second half."""
    index = Index.load(config.data.shards)
    images = torch.from_numpy(normalise(ImageReader(index, 512).images(torch.arange(index.count).numpy())))
    network, diffusion = build_network(config.resolved_network, index.shape), Diffusion.from_config(config.diffusion)
    weights: list[torch.Tensor] = list(network.parameters())
    averages = [weight.detach().clone() for weight in weights]
    train = config.train
    optimizer = torch.optim.AdamW(weights, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    began = 0.0
    for step in range(2 * steps):
        if step == steps:
            began = time.process_time()
        chosen = images[torch.randint(len(images), (train.batch_size,))]
        u, eps = torch.rand(len(chosen)), torch.randn_like(chosen)
        losses = diffusion.losses(network, chosen, u, eps, torch.float32, noise)
        optimizer.zero_grad()
        losses.primal.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, config.engine.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - train.ema_decay)  # pyright: ignore[reportPrivateImportUsage]
    return 1000 * (time.process_time() - began) / steps


def table(found: dict[str, list[float]]) -> Table:
    printed = Table(box=None)
    for column in ("", "CPU ms per step", "range", "over plain", "range"):
        printed.add_column(column, no_wrap=True)
    for name, times in found.items():
        ratios = [one / other for one, other in zip(times, found["plain PyTorch"], strict=True)]
        columns = [f"{statistics.median(values):.{d}f}" for values, d in ((times, 1), (ratios, 2))]
        ranges = [f"{min(values):.{d}f} to {max(values):.{d}f}" for values, d in ((times, 1), (ratios, 2))]
        printed.add_row(name, columns[0], ranges[0], columns[1], ranges[1])
    return printed


if __name__ == "__main__":
    main()
