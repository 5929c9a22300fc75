"""What makes a run the same run when it continues: its settings, its data, and the model that it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.checkpoints.checkpoint import TrainState, checkpoint_name, is_complete
from cdt.config import RunConfig, budgets_digest
from cdt.data.format.header import read_header
from cdt.errors import InputError
from cdt.runs.run import Run
from cdt.schema import resumable
from cdt.settings import apply_overrides, load_yaml, parse
from cdt.training.binding import Bound


def check_unfinished(directory: Path, state: TrainState, config: RunConfig) -> None:
    """Raises InputError when a checkpoint leaves nothing to do."""
    dual, enough = state.dual or {}, config.dual.stop_when_satisfied_for
    satisfied = enough is not None and dual and dual["state"]["satisfied_for"] >= enough
    ended = config.train.ending_at(config.train.warm_steps + state.dual_steps)
    if satisfied and dual.get("budgets") == budgets_digest(config) and state.step >= ended.total_steps:
        raise InputError(
            f"{directory} is complete: dual training ended with all requirements satisfied; more with other budgets, "
            "or dual.stop_when_satisfied_for=null"
        )
    if state.step >= config.train.total_steps:
        raise InputError(
            f"{directory} is complete: {state.step} of {config.train.total_steps} steps are done; "
            f"more with train.dual_steps=N (now {config.train.dual_steps})"
        )


def changed(run: Run, overrides: Sequence[str]) -> RunConfig:
    known = [*sorted(resumable(RunConfig)), *_budgets(run.config)]
    for override in overrides:
        path = override.partition("=")[0]
        if path not in known:
            raise InputError(f"{path} cannot change when a run is resumed; these can: {', '.join(known)}")
    path = run.directory / filenames.CONFIG
    return parse(RunConfig, apply_overrides(load_yaml(path), overrides), where=str(path))


def _budgets(config: RunConfig) -> list[str]:
    return [f"constraints.{name}.{constraint.budget_path}" for name, constraint in config.constraints.items()]


def warm_checkpoint(config: RunConfig, bound: Bound) -> Path:
    """The checkpoint of ``run.fork`` at the end of its warm start, which must fit this run."""
    assert config.run.fork is not None
    origin = Run(config.run.fork)
    path = origin.directory.resolve() / filenames.CHECKPOINTS / checkpoint_name(config.train.warm_steps)
    if not is_complete(path):
        raise InputError(
            f"run.fork: {config.run.fork} has no complete checkpoint at step {config.train.warm_steps}, the end of its "
            "warm start (train.warm_steps)"
        )
    theirs, ours = _continued(origin.config), _continued(config)
    differing = [name for name in ours if theirs[name] != ours[name]]
    differing += [f"{name} of its data" for name in differences(origin.data, data_facts(bound))]
    if differing:
        raise InputError(f"run.fork: {config.run.fork} differs in {', '.join(differing)}; a fork continues its weights")
    return path


def _continued(config: RunConfig) -> dict[str, object]:
    """The settings on which a checkpoint's files depend."""
    return {
        "network": config.network,
        "diffusion": config.diffusion,
        "adapter": config.adapter,
        "engine.zero_stage": config.engine.zero_stage,
        "engine.precision": config.engine.precision,
    }


def data_facts(bound: Bound) -> dict[str, Any]:
    """What data.json states of the data."""
    index, origin, replay = bound.index, bound.origin, bound.replay
    return {
        "split": index.split,
        "shape": list(index.shape),
        "dtype": index.dtype,
        "class_names": index.class_names,
        "class_counts": index.class_counts.tolist(),
        "source": read_header(index.root).source,
        "init": origin and {"directory": str(origin.pinned.resolve()), "digest": origin.digest()},
        "replay": None if replay is None else {"samples": replay.count(), "directory": str(replay.directory)},
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where data differ that a checkpoint was trained on and is to continue on."""
    return [name for name in ("shape", "dtype", "class_names", "class_counts") if one[name] != other[name]]


def check_origin(data: Mapping[str, Any], bound: Bound) -> None:
    """Raises InputError when the pretrained model is not the one that a run began with."""
    begun, origin = data.get("init"), bound.origin
    if begun and origin and not origin.has_digest(begun["digest"]):
        raise InputError(
            f"init: {origin.pinned.resolve()} is not what the run began with, {begun['directory']}: "
            "its weights, network or noise schedule have changed since"
        )


def pinned(config: RunConfig, bound: Bound) -> RunConfig:
    """With the checkpoint that ``init`` means today: its run may go on, or remove it."""
    return config if bound.origin is None else config.model_copy(update={"init": bound.origin.pinned.resolve()})
