"""The plan of a run, in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cdt.cluster.nodes import mark
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader, described
from cdt.engine.memory import activation_bytes, copies_bytes, peak_bytes, state_bytes
from cdt.errors import InputError, at
from cdt.files import resolved
from cdt.origin.replay import Replay
from cdt.runs.start import check
from cdt.settings import dump_yaml
from cdt.spelling import printable
from cdt.training.calibrate import share_at_budget

TRIED = 8
"""Shards of which a sample is read."""


def describe_plan(config: RunConfig, *, accept_data: bool = False) -> str:
    """What a run would do, in printable words: resolved configuration, size, phases, memory, files.

    Leaves nothing behind.
    Whether it could write and read is tried: a file is made and removed, and a sample of some shards is read. Raises
    InputError like ``train``, and if either fails.
    """
    config, bound, warm = check(config, accept_data=accept_data)
    with at("run.dir"), mark(resolved(config.directory)):
        pass
    tried = _try_to_read(bound.index)
    train, engine, world = config.train, config.engine, config.workers_used()
    with torch.device("meta"):
        network = bound.build().to("meta")  # a pretrained network comes with its weights
    parameters, trained = bound.weights
    micro = config.micro_batch(world)
    dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
    memory = state_bytes(parameters, trained, engine, world)
    host = {"copies for saves": copies_bytes(parameters, trained, engine, world)}
    if bound.replay is not None and config.replay.target == "teacher" and bound.answers is None:
        size = 2 if config.replay.teacher_precision == "bf16" else 4
        offload = config.replay.teacher_offload
        divided = world if engine.zero_stage >= 3 or offload else 1
        (host if offload else memory)["teacher"] = size * parameters / divided
    memory["activations"] = activation_bytes(network.to(dtype), bound.index.shape, micro, dtype)
    samples = config.data.epoch_samples or bound.index.count
    phases = {"warm start": train.warm_steps, "dual training": train.dual_steps, "cool-down": train.cooldown_steps}
    if warm is not None:
        phases["warm start"] = 0
    lines = [
        *dump_yaml(config).rstrip().split("\n"),
        "",
        f"network      {parameters:,} parameters ({config.resolved_network.kind})"
        + f", of which {trained:,} are trained" * (trained < parameters),
        f"data         {bound.index.count:,} samples of {list(bound.index.shape)}, epochs of {samples:,}",
        "phases       " + ", ".join(f"{name} {steps:,} steps" for name, steps in phases.items()),
        f"dual steps   every {bound.period_steps:,} training steps, {len(config.constraints)} constraints"
        + f", once {bound.settling_steps:,} have settled the first multipliers" * bool(bound.settling_steps)
        if config.constraints
        else "dual steps   none: there are no constraints",
        f"workers      {world}{' (this process)' * (config.run.workers == 0)}, "
        f"{micro} samples per worker and micro-batch, ZeRO stage {engine.zero_stage}, {engine.precision}",
        f"memory       peak about {peak_bytes(memory, engine) / 2**20:,.0f} MiB per worker, without the libraries; "
        f"the parts, not all at once: {_mib(memory)}",
        f"CPU memory   in addition: {_mib(host)} (MiB, first worker)",
        f"writes       {config.directory}/: config.yaml, data.json, metrics.jsonl, dual.jsonl, events.jsonl, "
        "calibration.json, README.md, checkpoints/, samples/, tb/",
    ]
    lines.append(tried)
    if bound.origin is not None:
        lines.append(f"starts from  {bound.origin.directory}: its EMA weights, network and noise schedule")
    if bound.replay is not None:
        lines += _replay_lines(config, bound.replay)
    if warm is not None:
        lines.append(f"starts from  {warm}")
    return "\n".join(map(printable, lines))


def _try_to_read(index: Index) -> str:
    """Reads the first sample of some shards. Raises InputError if none can be read."""
    _, firsts = np.unique(index.shard, return_index=True)
    rows = firsts[np.linspace(0, len(firsts) - 1, min(len(firsts), TRIED)).astype(int)]
    _, bad = ImageReader(index, cache_mb=0).usable(rows)
    if len(bad) == len(rows):
        raise InputError(f"data.shards: no sample can be read: {described(index, next(iter(bad.values())))}")
    found = f", of which {len(bad)} is unusable: {described(index, next(iter(bad.values())))}" if bad else ""
    return f"reads        tried: one sample of each of {len(rows)} shards{found}"


def _mib(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items())


def _replay_lines(config: RunConfig, replay: Replay) -> list[str]:
    drawn = "will be drawn" if replay.missing else "are there"
    lines = [f"replay       {replay.count():,} samples of the pretrained model; they {drawn}: {replay.directory}"]
    for name, constraint in config.constraints.items():
        if constraint.samples.replayed:
            share = 1 - share_at_budget(constraint)
            lines.append(
                f"{name:<12} leaves new data, if unlike anything that it generates, a share of up to {share:.1%}"
            )
    return lines
