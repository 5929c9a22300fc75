"""What a save costs: how long training stands still for it, how long it takes to be on the disk, how large it is.

    python tools/bench/save.py [--sizes 128x4 384x8 640x12] [--workers 1 2] [--repeats 5] [--out DIR]

A DiT of that width and depth, AdamW in fp32 at ZeRO stage 1, one thread per worker, checkpoints in DIR. *Stall* is
from the end of one step to the beginning of the next where a save was begun between them; *written* is from then until
the checkpoint has its name, training meanwhile; *waited for* is both where training waits for the disk. Medians and
ranges over the repeats; the first save of each network, whose memory is new, stands in a column of its own. *Minimum*:
weights, two moments and the average. *Steps slower*: the median step while a save is written over the median step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch._C._distributed_c10d import FileStore

from cdt.checkpoints.checkpoint import TrainState
from cdt.checkpoints.saving import Saver
from cdt.cluster.session import set_environment
from cdt.data.stream import StreamState
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, start_deepspeed
from cdt.engine.ranks import Ranks
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig
from cdt.training.schedule import TrainConfig

SHAPE, BATCH, CALM_STEPS = (1, 32, 32), 8, 6
COLUMNS = ("parameters", "workers", "MB", "of minimum", "first stall", "stall s", "written s", "waited for s", "slower")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["128x4", "384x8", "640x12"], help="width x depth of a DiT")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    arguments = parser.parse_args()
    set_environment()
    print(*COLUMNS, sep="; ")
    for size in arguments.sizes:
        width, depth = map(int, size.split("x"))
        for world in arguments.workers:
            with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
                work = (world, Path(folder), width, depth, arguments.repeats)
                multiprocessing.spawn(measure, work, nprocs=world)  # pyright: ignore[reportPrivateImportUsage]
                print(*(Path(folder) / "row").read_text().splitlines(), sep="; ", flush=True)


def measure(rank: int, world: int, folder: Path, width: int, depth: int, repeats: int) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=FileStore(str(folder / "store"), world), rank=rank, world_size=world)
    start_deepspeed()
    ranks = Ranks.current()
    build = lambda: build_network(DiTConfig(patch=8, width=width, depth=depth, heads=4), SHAPE)  # noqa: E731
    engine = Engine(build, EngineConfig(), TrainConfig(batch_size=BATCH * world, warm_steps=1, dual_steps=0), ranks)
    ema = Ema(engine)
    images, timesteps = torch.randn(BATCH, *SHAPE, device=ranks.device), torch.rand(BATCH, device=ranks.device)

    def step() -> float:
        began = time.monotonic()
        engine.backward(engine.network(images, 999 * timesteps).square().mean())
        engine.step(1e-4)
        ema.update(0.999)
        float(engine.gradient_norm())
        return time.monotonic() - began

    saver = Saver(folder, engine, ema, ranks)
    number = iter(range(10**6))

    def timed(action: Callable[[], object]) -> float:
        dist.barrier()
        began = time.monotonic()
        action()
        return time.monotonic() - began

    def begin() -> float:
        state = TrainState(next(number), world, 0, StreamState(0, {}, []))
        return timed(lambda: saver.begin(state))

    steps = [step() for _ in range(CALM_STEPS)][1:]
    first, stalls, written, waited, slowed = 0.0, [], [], [], []
    for repeat in range(repeats + 1):
        began = time.monotonic()
        stall = begin()
        during = [step()]
        while not saver.written():
            during.append(step())
        saver.finish()
        if repeat == 0:
            first = stall
            continue
        stalls.append(stall)
        written.append(time.monotonic() - began)
        slowed.append(statistics.median(during) / statistics.median(steps))
        waited.append(timed(lambda: (begin(), saver.finish())))
        steps += [step() for _ in range(CALM_STEPS)]
    saver.close()
    if ranks.first:
        size = sum(file.stat().st_size for file in sorted(folder.glob("step-*"))[-1].rglob("*") if file.is_file())
        count = sum(weight.numel() for weight in engine.module.parameters())
        cells = [f"{count / 1e6:.1f} M", str(world), f"{size / 1e6:.0f}", f"{size / (16 * count):.2f}", f"{first:.2f}"]
        (folder / "row").write_text("\n".join([*cells, *map(spread, (stalls, written, waited, slowed))]))
    dist.barrier()
    with contextlib.suppress(OSError):
        for path in folder.glob("step-*"):
            shutil.rmtree(path)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
