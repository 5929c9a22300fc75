"""What makes a run the same run when it continues: its settings, its data, and the model that it started from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.checkpoints.checkpoint import checkpoint_name, sound
from cdt.checkpoints.state import TrainState
from cdt.config import RunConfig, budgets_digest
from cdt.data.format.digest import digest_of
from cdt.data.format.header import read_header
from cdt.data.format.index import Index
from cdt.dual import ALARMS
from cdt.errors import InputError, at
from cdt.files import resolved
from cdt.judges import judge_digest
from cdt.measure.held_out import held_out_split
from cdt.runs.presence import SIGN
from cdt.runs.run import Run
from cdt.schema import resumable
from cdt.settings import apply_overrides, load_yaml, parse
from cdt.training.binding import Bound


def check_layout(directory: Path) -> None:
    """Raises InputError if something else has the name of a file or a folder of a run."""
    for name in (*filenames.FILES, SIGN):
        if os.path.lexists(directory / name) and not (directory / name).is_file():
            raise InputError(f"{directory / name} is not a regular file: remove it")
    for name in filenames.FOLDERS:
        if os.path.lexists(directory / name) and not (directory / name).is_dir():
            raise InputError(f"{directory / name} is not a directory: remove it")


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
    return parse(RunConfig, apply_overrides(load_yaml(path, resolved=True), overrides), where=str(path))


def _budgets(config: RunConfig) -> list[str]:
    return [f"constraints.{name}.{constraint.budget_path}" for name, constraint in config.constraints.items()]


def check_state(checkpoint: Path, state: TrainState, bound: Bound) -> None:
    """Raises InputError when a checkpoint, intact as it is, is not one of this run's constraints and samples."""
    m, K, dual = len(bound.requirements.names), len(bound.requirements.cell_shares), state.dual
    if dual is not None and len(dual["thresholds"]) != m:
        raise InputError(f"{checkpoint} is of {len(dual['thresholds'])} constraints, and the run has {m}")
    if dual is not None and len(dual["state"]["told"]) != len(ALARMS):
        raise InputError(f"{checkpoint} has {len(dual['state']['told'])} kinds of alarms, and there are {len(ALARMS)}")
    if state.sums and len(state.sums[0]) != K + 1:
        raise InputError(f"{checkpoint} has sums of {len(state.sums[0]) - 1} cells of samples, and the run has {K}")


def warm_checkpoint(config: RunConfig, bound: Bound, *, accept_data: bool = False) -> Path:
    """The checkpoint of ``run.fork`` at the end of its warm start, intact, which must fit this run.

    ``accept_data``: even if it was trained on other samples.
    """
    assert config.run.fork is not None
    origin = Run(config.run.fork)
    path = resolved(origin.directory) / filenames.CHECKPOINTS / checkpoint_name(config.train.warm_steps)
    if not path.exists():
        raise InputError(
            f"run.fork: {config.run.fork} has no complete checkpoint at step {config.train.warm_steps}, the end of its "
            "warm start (train.warm_steps)"
        )
    with at("run.fork"):
        sound(path, None)
    facts = data_facts(config, bound)
    theirs, ours = _continued(origin.config), _continued(config)
    differing = [name for name in ours if theirs[name] != ours[name]]
    differing += [f"{name} of its data" for name in differences(origin.data, facts)]
    if differing:
        raise InputError(f"run.fork: {config.run.fork} differs in {', '.join(differing)}; a fork continues its weights")
    if (others := other_samples(origin.data, facts)) and not accept_data:
        raise InputError(
            f"run.fork: {config.run.fork} was trained on other samples than these ({', '.join(others)}); a fork "
            "continues its weights: if that is wanted, add --accept-data"
        )
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


def data_facts(config: RunConfig, bound: Bound) -> dict[str, Any]:
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
        "digests": _digests(config, bound),
    }


def _digests(config: RunConfig, bound: Bound) -> dict[str, str]:
    """Of each index that is read, and of each classifier that measures a constraint.

    Drawn replay has none: its directory is named by all that it depends on.
    """
    indexes = {"data": bound.index}
    if (split := held_out_split(config.probe, bound.index)) is not None:
        indexes["probe"] = Index.load(config.data.shards, split, config.data.allow_pipe)
    if bound.replay is not None and bound.replay.given:
        indexes["replay"] = bound.replay.index()
        if (fresh := bound.replay.fresh()) is not None:
            indexes["fresh"] = fresh
    judges = {name: each.warm_share.judge for name, each in config.constraints.items() if each.warm_share is not None}
    return {name: digest_of(index) for name, index in indexes.items()} | {
        f"{_JUDGE}{name}": judge_digest(path) for name, path in judges.items()
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where data differ that a checkpoint was trained on and is to continue on."""
    return [
        name for name in ("shape", "dtype", "class_names", "class_counts") if _plain(one[name]) != _plain(other[name])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def other_samples(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings whose samples are not those of ``before``, where it knows a digest."""
    return [_SETTINGS[name] for name in _replaced(before, now) if name in _SETTINGS]


def other_classifiers(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The constraints whose classifier is not that of ``before``, where it knows a digest."""
    replaced = [name.removeprefix(_JUDGE) for name in _replaced(before, now) if name.startswith(_JUDGE)]
    return [f"constraints.{name}" for name in replaced]


def _replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    known = before.get("digests") or {}
    return [name for name, digest in now["digests"].items() if known.get(name, digest) != digest]


_SETTINGS = {
    "data": "data.shards",
    "probe": "probe.split",
    "replay": "replay.shards",
    "fresh": "the split fresh of replay.shards",
}
"""By the names of digests in data.json."""
_JUDGE = "classifier of "
"""Before the name of a constraint: the name of its classifier's digest."""


def facts_now(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What data.json states of a run that continues: as before, and the digests of what it reads now."""
    return {**before, "digests": {**(before.get("digests") or {}), **now["digests"]}}


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
