"""What a run would take on more machines than there are here: python tools/scale_model.py [--measured FILE]

Steps, collectives, the dual side, start, checkpoints and cost, for N = 8 to 4,096 GPUs and m = 10 to 100,000
constraints, from pieces that were measured and bandwidths that are stated; and which of the assumptions the result
hangs on most. FILE is what tools/bench/pieces.py wrote: then the pieces of this machine take the place of those below
where they carry over, and the same formulas predict whole steps of one and of two workers, beside what they took.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GPUS = (8, 64, 512, 4096)
CONSTRAINTS = (10, 1_000, 100_000)
FLOAT = 8
"""Bytes of what is summed over the ranks for the dual step."""


def stated(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """A run and the machines that it is on; of each number its unit and its source."""

    parameters: float = stated(675e6, "weights", "DiT-XL/2 (Peebles and Xie, 2023)")
    tensors: float = stated(600, "weight tensors", "28 blocks of about 20")
    batch: float = stated(8192, "samples per step", "chosen")
    steps: float = stated(100_000, "steps", "chosen")
    period: float = stated(156, "steps per dual step", "an epoch of 1.28 million samples")
    checkpoints: float = stated(100, "per run", "every 1,000 steps")

    sample_s: float = stated(1.8e-3, "s per sample", "6 x 118.6 GMAC (DiT-XL/2) at 40 % of an H100's 989 TFLOP/s")
    fixed_s: float = stated(5e-3, "s per step", "guessed: Python, kernel launches, clipping")
    update_s: float = stated(2.4e-11, "s per weight", "80 bytes moved at 3.35 TB/s (H100 SXM)")
    probe_s: float = stated(5.9e-3, "s per draw", "2 x 118.6 GMAC at 60 % of an H100's 67 TFLOP/s in fp32")
    low_bytes: float = stated(2, "bytes", "bf16 weights and gradients")

    gpus_per_node: float = stated(8, "GPUs", "HGX H100")
    inside: float = stated(3.2e11, "bytes/s per GPU", "70 % of NVLink 4's 450 GB/s per direction")
    between: float = stated(3.5e10, "bytes/s per GPU", "70 % of a 400 Gbit/s InfiniBand port per GPU")
    inside_latency: float = stated(5e-6, "s per hop", "order of magnitude of nccl's")
    between_latency: float = stated(1.5e-5, "s per hop", "order of magnitude of nccl's")

    draws: float = stated(256, "per constraint", "probe.draws")
    draws_limit: float = stated(8192, "per dual step", "probe.limit")
    build_s: float = stated(1.9e-8, "s per weight", "measured here, tools/bench/pieces.py: new weights")
    dual_s: float = stated(2e-7, "s per constraint", "measured here, tools/bench/dual.py: dual step and journal")
    sent_bytes: float = stated(156, "bytes per constraint", "measured here, tools/bench/dual.py: problem and state")
    told_bytes: float = stated(84, "bytes per constraint", "measured here, tools/bench/dual.py: state")
    actor: float = stated(1e9, "bytes/s", "guessed: a Ray call's arguments, pickled")

    ray_s: float = stated(30, "s", "measured here for one worker, on a busy machine: Ray, processes, imports")
    worker_s: float = stated(0.05, "s per worker", "guessed: actors and ranks that one process starts in turn")

    storage: float = stated(5e10, "bytes/s in all", "guessed: a parallel file system")
    node_storage: float = stated(5e9, "bytes/s per node", "guessed: its network to that file system")
    hash_s: float = stated(
        6e-10, "s per byte", "SHA-256 with the processor's instructions, one core; measured here: 2e-9"
    )
    hash_threads: float = stated(16, "threads", "the first rank's share of a node's cores")

    price: float = stated(2.5, "$ per GPU and hour", "guessed: H100s on demand, late 2025")

    def nodes(self, N: int) -> int:
        return math.ceil(N / self.gpus_per_node)


def reduced(a: Assumptions, N: int, size: float) -> float:
    """Seconds of an all-reduce of ``size`` bytes: rings inside of the nodes, then between equal parts of them.

    A ring moves 2 (n - 1) / n of what it reduces over each link: Patarasu and Yuan, 2009; latencies grow as in a tree.
    """
    g, n = min(N, int(a.gpus_per_node)), a.nodes(N)
    moved = 2 * (g - 1) / g * size / a.inside + 2 * (n - 1) / n * size / g / a.between
    return moved + 2 * (math.log2(g) * a.inside_latency + math.log2(n) * a.between_latency)


def gathered(a: Assumptions, N: int, size: float) -> float:
    """Seconds of an all-gather, or of a broadcast in pieces: half of what an all-reduce moves."""
    return reduced(a, N, size) / 2


def collectives(a: Assumptions, N: int) -> float:
    """Of a step at ZeRO stages 1 and 2: gradients are reduced, weights are gathered; DeepSpeed overlaps neither."""
    size = a.low_bytes * a.parameters
    return reduced(a, N, size) + gathered(a, N, size)


def step(a: Assumptions, N: int) -> float:
    """Seconds of a step; a batch is divided over the workers, and so is the update."""
    return a.fixed_s + a.batch / N * a.sample_s + a.update_s * a.parameters / N + collectives(a, N)


def copied(a: Assumptions, N: int) -> float:
    """Seconds of the average's copy that is probed: each of its weights is an all-reduce of its own."""
    return reduced(a, N, 4 * a.parameters) + a.tensors * reduced(a, N, 0)


def probed(a: Assumptions, N: int, m: int) -> float:
    """Seconds of forwards: each constraint's draws up to a limit, dealt over the ranks."""
    return a.probe_s * math.ceil(min(a.draws * m, a.draws_limit) / N)


def decided(a: Assumptions, N: int, m: int) -> float:
    """Seconds from the sums to everybody's multipliers: three sums each, the coordinator, the state to all ranks."""
    asked = reduced(a, N, 3 * FLOAT * (m + 1)) + a.sent_bytes * m / a.actor + a.dual_s * m
    hops = math.log2(N)
    return asked + hops * (a.told_bytes * m / a.between + a.between_latency)


def dual(a: Assumptions, N: int, m: int) -> float:
    """Seconds of a dual step."""
    return copied(a, N) + probed(a, N, m) + decided(a, N, m)


def start(a: Assumptions, N: int) -> float:
    """Seconds until the first step: Ray, the workers, the network on each, one rank's weights on all."""
    return a.ray_s + a.worker_s * N + a.build_s * a.parameters + gathered(a, N, a.low_bytes * a.parameters)


def checkpoint(a: Assumptions, N: int) -> float:
    """Seconds of a save: optimiser by all, weights and averages by the first rank, which then reads all for digests."""
    divided, whole = 12 * a.parameters, (a.low_bytes + 8) * a.parameters
    written = divided / min(a.storage, a.nodes(N) * a.node_storage) + whole / a.node_storage
    hashed = a.hash_s * max(4 * a.parameters, (divided + whole) / min(a.hash_threads, N + 3))
    gathering = 2 * (reduced(a, N, 4 * a.parameters) + a.tensors * reduced(a, N, 0))
    return gathering + written + max(hashed, (divided + whole) / a.node_storage)


def hours(a: Assumptions, N: int, m: int) -> float:
    """Of the whole run."""
    training = a.steps * step(a, N) + a.steps / a.period * dual(a, N, m)
    return (start(a, N) + training + a.checkpoints * checkpoint(a, N)) / 3600


def dollars(a: Assumptions, N: int, m: int) -> float:
    return N * a.price * hours(a, N, m)


CHOSEN = ("parameters", "tensors", "batch", "steps", "period", "checkpoints", "low_bytes", "gpus_per_node", "price")
"""What is asked for, not assumed."""
RATES = ("inside", "between", "actor", "storage", "node_storage", "hash_threads")
"""Worse when they are lower."""


def dominant(a: Assumptions, N: int, m: int) -> tuple[str, float]:
    """The assumption that lengthens the run most when it is twice as bad as assumed, and by which share."""
    before = hours(a, N, m)

    def longer(name: str) -> float:
        factor = 0.5 if name in RATES else 2
        return hours(replace(a, **{name: getattr(a, name) * factor}), N, m) / before - 1

    names = [each.name for each in fields(a) if each.name not in CHOSEN]
    worst = max(names, key=longer)
    return worst, longer(worst)


def carried_over(a: Assumptions, pieces: dict[str, Any]) -> Assumptions:
    """With what was measured here and is a processor's work there as well."""
    return replace(a, **{name: pieces[name] for name in ("build_s", "dual_s", "hash_s")})


def of_this_machine(pieces: dict[str, Any], case: str, workers: int) -> Assumptions:
    """The same formulas' assumptions for a case of the pieces: steps at two other batches, and gloo."""
    found = pieces[case]
    batch, P = found["batch"], found["parameters"]
    small, large = found[f"alone {batch // 4}"], found[f"alone {batch // 2}"]
    sample_s = (large - small) / (batch // 2 - batch // 4)
    return replace(
        Assumptions(),
        parameters=P,
        batch=batch,
        sample_s=sample_s,
        fixed_s=large - sample_s * (batch // 2) - found["update_s"],
        update_s=found["update_s"] / P,
        low_bytes=4,
        gpus_per_node=workers,
        inside=pieces["collectives"]["bytes_per_s"],
        inside_latency=pieces["collectives"]["latency_s"] / 2,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what tools/bench/pieces.py wrote")
    arguments = parser.parse_args()
    console, assumed = Console(width=170), Assumptions()
    if arguments.measured:
        pieces = json.loads(arguments.measured.read_text())
        assumed = carried_over(assumed, pieces)
        console.print(held_against(pieces))
    for table in (assumptions_table(assumed), workers_table(assumed), constraints_table(assumed)):
        console.print(table)


def table_of(title: str, columns: tuple[str, ...], rows: list[list[str]], texts: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def held_against(pieces: dict[str, Any]) -> Table:
    rows = []
    cases = [name for name, found in pieces.items() if isinstance(found, dict) and "batch" in found]
    for case in cases:
        for workers in (1, 2):
            predicted = 1000 * step(of_this_machine(pieces, case, workers), workers)
            each = [1000 * found[case][f"run {workers}"] for found in pieces["all"]]
            measured = 1000 * pieces[case][f"run {workers}"]
            spread = f"{min(each):.1f} to {max(each):.1f}"
            told = [f"{value:.1f}" for value in (predicted, measured)]
            rows.append([case, str(workers), *told, spread, f"{predicted / measured:.2f}"])
    columns = ("", "workers", "predicted, ms", "measured, ms", "range", "ratio")
    return table_of(f"processor time of a step on this machine ({pieces['repeats']} repeats)", columns, rows)


def assumptions_table(a: Assumptions) -> Table:
    def row(each: Field[Any]) -> list[str]:
        value = getattr(a, each.name)
        source = each.metadata["source"] if value == each.default else "measured here, tools/bench/pieces.py"
        return [each.name, f"{value:,.6g}", each.metadata["unit"], source]

    return table_of("assumed", ("", "value", "unit", "source"), [row(each) for each in fields(a)])


def workers_table(a: Assumptions) -> Table:
    rows = []
    for N in GPUS:
        shares = [step(a, N), collectives(a, N), dual(a, N, CONSTRAINTS[0]) / a.period]
        seconds = [start(a, N), checkpoint(a, N)]
        name, longer = dominant(a, N, CONSTRAINTS[0])
        milliseconds, told = [f"{1000 * each:,.1f}" for each in shares], [f"{each:,.1f}" for each in seconds]
        told += [f"{hours(a, N, CONSTRAINTS[0]):,.1f}", f"{dollars(a, N, CONSTRAINTS[0]):,.0f}"]
        rows.append([f"{N:,}", *milliseconds, *told, f"{name} (+{longer:.0%} where it is twice as bad)"])
    columns = ("GPUs", "step, ms", "collectives", "dual, a step", "start, s", "save, s", "hours", "$", "hangs most on")
    return table_of(f"with {CONSTRAINTS[0]} constraints", columns, rows)


def constraints_table(a: Assumptions) -> Table:
    rows = []
    for N in GPUS:
        for m in CONSTRAINTS:
            parts = [copied(a, N), probed(a, N, m), decided(a, N, m)]
            share = dual(a, N, m) / a.period / step(a, N)
            told = [f"{1000 * each:,.1f}" for each in (*parts, sum(parts))]
            rows.append([f"{N:,}", f"{m:,}", *told, f"{share:.1%}", dominant(a, N, m)[0]])
    columns = ("GPUs", "constraints", "copy, ms", "probe", "decision", "dual step", "of all steps", "hangs most on")
    return table_of("a dual step", columns, rows)


if __name__ == "__main__":
    main()
