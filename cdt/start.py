"""A run from its configuration: checked, given a directory, launched. What users call as cdt.train and cdt.resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cdt.cluster.trainer import check_slots, launch, set_environment
from cdt.config import RunConfig
from cdt.data.header import read_header
from cdt.errors import InputError, RunError
from cdt.run import Run, write_card
from cdt.settings import apply_overrides, dump_yaml, load_yaml, parse
from cdt.training.checkpoint import checkpoint_name, is_complete
from cdt.training.job import Job, Prepared, prepare

OnProgress = Callable[[dict[str, Any]], None]

CHANGEABLE = {
    "data": {"shards", "loader_workers", "cache_mb"},
    "dual": {"eta", "cap"},
    "run": {"threads"},
    "sampler": {"name", "steps"},
    "train": {"dual_steps", "cooldown_steps", "lr", "checkpoint_steps", "log_steps", "grid_images"},
}
"""What may change when a run is resumed; all else would make it another run."""


def check(config: RunConfig) -> tuple[Prepared, Path | None]:
    """All that can be refused before a run starts; the checkpoint that it forks from, if it does.

    Raises InputError.
    """
    check_slots(config.run.workers)
    prepared = prepare(config)
    return prepared, None if config.run.fork is None else _warm_checkpoint(config, prepared)


def train(config: RunConfig, on_progress: OnProgress = lambda report: None) -> Run:
    """Trains a new run to its end.

    Raises InputError before anything is written when the configuration, the data and the machine do not fit together;
    RunError when the run fails later: what it wrote stays, and ``resume`` continues it.
    """
    prepared, warm = check(config)
    check_tools()
    if config.directory.exists():
        raise InputError(
            f"{config.directory} exists already: continue it with `cdt resume {config.directory}`, "
            "or choose another name: run.name=NAME"
        )
    _lay_out(config, prepared)
    job = Job(config, config.directory.resolve(), checkpoint=warm, fork=warm is not None)
    return _finish(job, config.directory, on_progress)


def resume(directory: str | Path, overrides: Sequence[str] = (), on_progress: OnProgress = lambda report: None) -> Run:
    """Continues a run from its newest complete checkpoint; ``overrides`` change what ``CHANGEABLE`` lists.

    Raises InputError when there is nothing to continue, nothing left to do, or something else would change.
    """
    run = Run(directory)
    config = _changed(run, overrides)
    check(config)
    check_tools()
    step, workers = run.state.step, max(config.run.workers, 1)
    if step >= config.train.total_steps:
        raise InputError(
            f"{directory} is complete: {step} of {config.train.total_steps} steps are done; "
            f"more with train.dual_steps=N (now {config.train.dual_steps})"
        )
    if run.state.world != workers:
        raise InputError(
            f"run.workers: the checkpoint was written by {run.state.world} workers and cannot continue on {workers}"
        )
    _write(run.directory / "config.yaml", dump_yaml(config))
    return _finish(Job(config, run.directory.resolve(), run.checkpoint.resolve()), run.directory, on_progress)


def check_tools() -> None:
    """Raises InputError when DeepSpeed could not build its communication op for CPUs."""
    set_environment()
    tools = {"ninja": "pip install ninja", "c++": "install a C++ compiler (Debian: apt-get install g++)"}
    missing = [f"{name} is missing: {remedy}" for name, remedy in tools.items() if shutil.which(name) is None]
    if missing and not torch.cuda.is_available():
        raise InputError(f"DeepSpeed builds its CPU communication with tools that are not here: {'; '.join(missing)}")


def _finish(job: Job, directory: Path, on_progress: OnProgress) -> Run:
    try:
        launch(job, on_progress)
    except RunError as error:
        more = (
            f"continue with `cdt resume {directory}`"
            if Run(directory).has_checkpoint
            else "no checkpoint was saved yet"
        )
        raise RunError(f"{error}\nIts log is {directory}/events.jsonl; {more}") from None
    run = Run(directory)
    write_card(run)
    return run


def _changed(run: Run, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        path = override.partition("=")[0]
        section, _, key = path.partition(".")
        if key not in CHANGEABLE.get(section, ()):
            known = ", ".join(f"{section}.{key}" for section, keys in CHANGEABLE.items() for key in sorted(keys))
            raise InputError(f"{path} cannot change when a run is resumed; these can: {known}")
    path = run.directory / "config.yaml"
    return parse(RunConfig, apply_overrides(load_yaml(path), overrides), where=str(path))


def _warm_checkpoint(config: RunConfig, prepared: Prepared) -> Path:
    """The checkpoint of ``run.fork`` at the end of its warm start, which must fit this run."""
    assert config.run.fork is not None
    origin = Run(config.run.fork)
    path = origin.directory.resolve() / "checkpoints" / checkpoint_name(config.train.warm_steps)
    if not is_complete(path):
        raise InputError(
            f"run.fork: {config.run.fork} has no complete checkpoint at step {config.train.warm_steps}, the end of its "
            "warm start (train.warm_steps)"
        )
    differing = [name for name in ("network", "diffusion") if getattr(origin.config, name) != getattr(config, name)]
    if origin.config.engine.zero_stage != config.engine.zero_stage or origin.config.run.workers != config.run.workers:
        differing.append("engine.zero_stage or run.workers")
    if origin.shape != prepared.index.shape:
        differing.append("data.shards")
    if differing:
        raise InputError(f"run.fork: {config.run.fork} differs in {', '.join(differing)}; a fork continues its weights")
    return path


def _lay_out(config: RunConfig, prepared: Prepared) -> None:
    """The run directory with what is known before the first step; nothing stays when the disk refuses."""
    index, directory = prepared.index, config.directory
    data = {
        "split": index.split,
        "shape": list(index.shape),
        "dtype": index.dtype,
        "class_names": index.class_names,
        "class_counts": index.class_counts.tolist(),
        "source": read_header(index.root).source,
    }
    try:
        directory.mkdir(parents=True)
        _write(directory / "config.yaml", dump_yaml(config))
        _write(directory / "data.json", json.dumps(data, indent=1) + "\n")
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise RunError(f"cannot write {directory}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
