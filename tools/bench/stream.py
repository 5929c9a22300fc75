"""The mixture stream measured: speed against a plain loop, bytes fetched, open files, memory, seeking, waiting for it.

    python tools/bench/stream.py [--seconds 2] [--repeats 5] [--json FILE]

All on synthetic shards in a temporary directory, one process unless a line says otherwise; ratios are taken within one
repeat, medians and ranges over the repeats.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdt.data.config import DataConfig
from cdt.data.format.decode import decode
from cdt.data.format.index import Index, ShardInfo
from cdt.data.plan.order import stream_key
from cdt.data.plan.planner import Planner
from cdt.data.plan.stratified import base_order
from cdt.data.read.files import RemoteFiles
from cdt.data.sources import Source
from cdt.data.stream import MixtureStream
from cdt.data.write.shard import shard
from cdt.dual import Draws

BATCH = 128


def synthetic(count: int, shape: tuple[int, int, int], classes: int) -> Source:
    """Smooth images, which compress as pictures do."""
    rng = np.random.default_rng(0)
    channels, height, width = shape
    waves = np.sin(np.linspace(0, 6, height))[:, None] * np.cos(np.linspace(0, 9, width))
    images = (128 + 60 * waves + rng.normal(0, 20, (count, channels, 1, 1))).clip(0, 255).astype(np.uint8)
    images += rng.integers(0, 16, images.shape, dtype=np.uint8)
    return Source(
        class_names=[str(c) for c in range(classes)],
        keys=[f"k{number:07d}" for number in range(count)],
        classes=rng.integers(0, classes, count),
        shapes=np.tile(shape, (count, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "synthetic"},
        splits=np.full(count, "train"),
    )


def mixture_of(lambdas: np.ndarray) -> Draws:
    weights = np.array([1.0, *lambdas])
    return Draws(weights / weights.sum(), np.ones(len(weights)), np.ones(1))


def open_stream(
    index: Index, lambdas: list[float], rank: int = 0, world: int = 1, cache_mb: float = 0
) -> MixtureStream:
    """The base and a constraint for each of the first classes."""
    rows = {str(c): np.flatnonzero(index.classes == c % len(index.class_names)) for c in range(len(lambdas))}
    return MixtureStream(
        DataConfig(shards=str(index.root), cache_mb=cache_mb),
        index,
        rows,
        np.zeros(index.count, np.int64),
        mixture_of,
        lambdas=np.array(lambdas),
        batch_size=BATCH,
        seed=0,
        rank=rank,
        world=world,
    )


def plain_loop(index: Index) -> Iterator[int]:
    """Reading the tars in sequence and decoding, nothing else: 1 for each sample."""
    while True:
        for info in index.shards:
            with tarfile.open(index.root / info.name, "r|") as tar:
                for member in tar:
                    ext = member.name.partition(".")[2]
                    file = tar.extractfile(member)
                    assert file is not None
                    payload = file.read()
                    if ext == "images.npy":
                        yield len(np.load(io.BytesIO(payload)))
                    elif ext in ("png", "npy"):
                        decode(payload, ext)
                        yield 1


def rate(samples: Iterator[int], seconds: float) -> float:
    """Samples per second."""
    next(samples)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += next(samples)
    return count / (time.perf_counter() - began)


def spread(values: list[float], unit: str = "") -> dict[str, Any]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}


def speed(folder: Path, seconds: float, repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, count, shape, pack in (
        ("28x28 grey, bundled", 60_000, (1, 28, 28), True),
        ("28x28 grey, png", 6_000, (1, 28, 28), False),
        ("64x64 colour, png", 3_000, (3, 64, 64), False),
        ("4x32x32 float32 npy", 3_000, (4, 32, 32), False),
    ):
        root = folder / name.replace(" ", "-").replace(",", "")
        source = synthetic(count, shape, 10)
        shard(source, root, pack=pack, shard_mb=8)
        index = Index.load(root)
        whole, alone, kept = [], [], []
        remembering = open_stream(index, [0.2, 0.0, 0.3], cache_mb=512)
        for _ in range(3 * count // BATCH):
            next(remembering)
        for _ in range(repeats):
            kept.append(rate((len(batch.images) for batch in remembering), seconds))
            stream = open_stream(index, [0.2, 0.0, 0.3])
            whole.append(rate((len(batch.images) for batch in stream), seconds))
            alone.append(rate(plain_loop(index), seconds))
        results[name] = {
            "stream": spread(whole, "samples/s"),
            "plain loop": spread(alone, "samples/s"),
            "ratio": spread([one / other for one, other in zip(whole, alone, strict=True)]),
            "stream, decoded data in memory": spread(kept, "samples/s"),
        }
    return results


def synthetic_index(count: int, shards: int, classes: int) -> Index:
    """Of a large data set, without tars."""
    return Index(
        root=Path("none"),
        split="train",
        shape=(1, 1, 1),
        dtype="uint8",
        class_names=[str(c) for c in range(classes)],
        shards=[ShardInfo(f"train/{i:06d}.tar", count // shards, 1 << 20, "") for i in range(shards)],
        shard=np.repeat(np.arange(shards, dtype=np.int32), count // shards),
        offset=np.zeros(count, np.int64),
        size=np.ones(count, np.int64),
        classes=np.random.default_rng(0).integers(0, classes, count).astype(np.int32),
        ext=np.zeros(count, np.int32),
        extensions=["raw"],
        crc=np.full(count, -1),
    )


def seek(repeats: int) -> dict[str, Any]:
    """From nothing to the plan of the first batch after a million samples."""
    index = synthetic_index(1_000_000, 200, 1000)
    results = {}
    for order in ("shuffled", "stratified"):
        times = []
        for _ in range(repeats):
            object.__setattr__(index, "order", order)
            began = time.perf_counter()
            planner = Planner([base_order(index, 1)], mixture_of, BATCH, slice(None), stream_key(0, "allocation"))
            planner.start(1_000_000 // BATCH, np.array([999_990]))
            planner.steer(1_000_000 // BATCH, np.zeros(0))
            next(iter(planner))
            times.append(time.perf_counter() - began)
        results[order] = spread(times, "s")
    return results


def constraints(folder: Path) -> dict[str, Any]:
    """1,000 constraint streams of which 3 are drawn from, and the base alone: each in a process of its own."""
    root = folder / "classes"
    shard(synthetic(20_000, (1, 28, 28), 1000), root, pack=True, shard_mb=0.5)
    results: dict[str, Any] = {"shards": len(Index.load(root).shards)}
    for name, count in (("base alone", 0), ("1,000 constraints", 1000)):
        command = [sys.executable, __file__, "--measure-memory", str(root), str(count)]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return results


def measure_memory(root: Path, count: int) -> dict[str, Any]:
    """Of this process, beside that of the index: after 200 batches."""
    index = Index.load(root)
    before = memory()
    stream = open_stream(index, ([0.1, 0.2, 0.3] + [0.0] * 997)[:count])
    for _ in range(200):
        next(stream)
    return {"open files": open_shards(root), "MB": round((memory() - before) / 1e6, 1)}


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_shards(root: Path) -> int:
    paths = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return len({path for path in paths if path.startswith(str(root.resolve()))})


def fetched(folder: Path) -> dict[str, Any]:
    """Bytes fetched over bytes used in one epoch by ranks without a common cache, as on machines of their own."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
    from server import serve  # pyright: ignore[reportMissingImports]

    root = folder / "remote"
    shard(synthetic(2_048, (3, 64, 64), 10), root, pack=False, shard_mb=0.7)
    header = json.loads((root / "index.json").read_text())
    results = {}
    for order in ("shuffled", "stratified"):
        (root / "index.json").write_text(json.dumps(header | {"order": order}))
        for world in (1, 2, 8):
            sent, used = 0, 0
            for rank in range(world):
                with serve(folder) as server, tempfile.TemporaryDirectory() as cache:
                    os.environ["CDT_CACHE"] = cache
                    index = Index.load(f"{server.url}/remote")
                    before = server.sent
                    stream = open_stream(index, [0.0], rank, world)
                    rows = stream._planner.ahead(index.count // BATCH)
                    for _ in range(index.count // BATCH):
                        next(stream)
                    files = stream.reader.files
                    assert isinstance(files, RemoteFiles)
                    sent += server.sent - before
                    used += int(index.size[rows].sum())
            results[f"{order}, {world} ranks"] = round(sent / used, 3)
    return results


def waiting(folder: Path, repeats: int) -> dict[str, Any]:
    """Share of a training step that is spent waiting for data, at MNIST's size, nothing kept in memory."""
    import cdt

    root = folder / "mnist-size"
    shard(synthetic(60_000, (1, 28, 28), 10), root, pack=True)
    results = {}
    for channels in ([16, 32, 64], [32, 64, 64]):
        shares = []
        for repeat in range(repeats):
            tree = {
                "data": {"shards": str(root), "cache_mb": 0},
                "network": {"kind": "unet", "channels": channels},
                "train": {"warm_steps": 0, "dual_steps": 8, "log_steps": 4, "batch_size": 64, "grid_images": 0},
                "constraints": {"class 4": {"class": 4, "min_frequency": 0.2, "window": 0.0}},
                "dual": {"estimate": "training"},
                "run": {"workers": 0, "threads": 1, "dir": str(folder / "runs"), "name": f"{channels[0]}-{repeat}"},
            }
            run = cdt.train(cdt.RunConfig.model_validate(tree))
            last = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
            shares.append(100 * last["data_wait_s"] * last["samples_per_s"] / 64)
        results[f"UNet of {channels}"] = spread(shares, "%")
    return results


def show(name: str, result: Any, depth: int = 0) -> None:
    indent = "  " * depth
    if isinstance(result, dict) and "median" in result:
        print(f"{indent}{name}: {result['median']:.4g} ({result['low']:.4g} to {result['high']:.4g}) {result['unit']}")
    elif isinstance(result, dict):
        print(f"{indent}{name}")
        for key, value in result.items():
            show(key, value, depth + 1)
    else:
        print(f"{indent}{name}: {result}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--repeats", type=int, default=5, help="(5)")
    parser.add_argument("--only", nargs="*", help="parts: speed, seek, constraints, fetched, waiting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure_memory:
        root, count = arguments.measure_memory
        print(json.dumps(measure_memory(Path(root), int(count))))
        return
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parts: dict[str, Callable[[], Any]] = {
            "speed": lambda: speed(folder, arguments.seconds, arguments.repeats),
            "seek": lambda: seek(arguments.repeats),
            "constraints": lambda: constraints(folder),
            "fetched": lambda: fetched(folder),
            "waiting": lambda: waiting(folder, arguments.repeats),
        }
        for name, part in parts.items():
            if not arguments.only or name in arguments.only:
                results[name] = part()
                show(name, results[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
