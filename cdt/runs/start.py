"""A run from its configuration: checked, given a directory, launched. What users call as cdt.train and cdt.resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdt.checkpoints.checkpoint import TrainState, checkpoint_name, is_complete, newest_sound, read_state
from cdt.cluster.nodes import check_nodes
from cdt.cluster.session import check_slots, cluster
from cdt.cluster.trainer import launch
from cdt.config import RunConfig, budgets_digest
from cdt.data.format.header import read_header
from cdt.errors import InputError, RunError
from cdt.monitor.journal import note
from cdt.origin.resolve import resolve
from cdt.runs.mirror import Mirror, mirrored
from cdt.runs.presence import at_work, check_idle
from cdt.runs.run import Run, has_checkpoint, save_text, write_card
from cdt.schema import resumable
from cdt.settings import apply_overrides, dump_yaml, load_yaml, parse
from cdt.training.binding import Bound
from cdt.training.check import check as check_together
from cdt.training.job import Job

OnProgress = Callable[[dict[str, Any]], None]


class Checked(NamedTuple):
    """A new run that can start."""

    config: RunConfig
    """Resolved: it states what the pretrained model decides."""
    bound: Bound
    warm: Path | None
    """The checkpoint that it forks from."""


def check(config: RunConfig) -> Checked:
    """Everything that can be refused before a new run starts. Raises InputError."""
    config = resolve(config)
    if config.directory.exists():
        begun = (config.directory / "config.yaml").is_file()
        remedy = f", or continue it with `cdt resume {config.directory}`" if begun else ""
        raise InputError(f"{config.directory} exists already: choose another name, run.name=NAME{remedy}")
    bound = _fit_together(config)
    bound.index.check_sizes()
    if mirror := _mirror(config, config.directory):
        mirror.check_new()
    return Checked(config, bound, None if config.run.fork is None else _warm_checkpoint(config, bound))


def train(config: RunConfig, on_progress: OnProgress = lambda report: None, address: str | None = None) -> Run:
    """Trains a new run to its end, on this machine or on the Ray cluster at ``address`` (HOST:PORT or auto).

    Raises InputError before anything is written when the configuration, the data and the machine do not fit together;
    RunError when the run fails later: what it wrote stays, and ``resume`` continues it. KeyboardInterrupt likewise.
    """
    with cluster(address):
        config, bound, warm = check(config)
        _draw_replay(bound, on_progress)
        directory, config = config.directory, _pinned(config.anchored(), bound)
        _lay_out(config, bound)
        job = Job(config, config.directory, checkpoint=warm, fork=warm is not None)
        return _finish(job, directory, on_progress)


def resume(
    directory: str | Path,
    overrides: Sequence[str] = (),
    on_progress: OnProgress = lambda report: None,
    address: str | None = None,
) -> Run:
    """Continues a run from its newest sound checkpoint, or from its beginning where it has none.

    ``overrides`` change budgets, and settings that are marked as ``RESUMABLE``; ``address`` is as in ``train``.

    Raises InputError when there is nothing to continue, nothing left to do, or something else would change.
    """
    with cluster(address):
        return _resume(directory, overrides, on_progress)


def _resume(directory: str | Path, overrides: Sequence[str], on_progress: OnProgress) -> Run:
    run = Run(directory)
    check_idle(run.directory)
    config = _changed(run, overrides).anchored()
    if mirror := _mirror(config, run.directory):
        mirror.check_behind()
    sound, passed_over = newest_sound(run.directory.resolve() / "checkpoints")
    if sound:
        _check_unfinished(run.directory, read_state(sound), config)
    bound = _fit_together(config)
    bound.index.check_sizes(spare=config.data.max_bad_fraction)
    if differing := _differences(run.data, _facts(bound)):
        raise InputError(f"data.shards: {config.data.shards} differs from the run's data in {', '.join(differing)}")
    _check_origin(run.data, bound)
    _draw_replay(bound, on_progress)
    config = _pinned(config, bound)
    fork = config.run.fork is not None and sound is None
    checkpoint = _warm_checkpoint(config, bound) if fork else sound
    stated = (run.directory / "config.yaml").read_text()
    save_text(run.directory / "config.yaml", dump_yaml(config))
    for problem in passed_over:
        told = f"{problem}; it is passed over"
        note(run.directory, read_state(sound).step if sound else 0, "damaged", told)
        on_progress({"said": told})
    try:
        return _finish(Job(config, run.directory.resolve(), checkpoint, fork), run.directory, on_progress)
    except InputError:
        if run.directory.is_dir():
            save_text(run.directory / "config.yaml", stated)
        raise


def _check_unfinished(directory: Path, state: TrainState, config: RunConfig) -> None:
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


def _fit_together(config: RunConfig) -> Bound:
    """Raises InputError unless configuration, data and machine do."""
    check_slots(config.run.min_workers or config.run.workers)
    bound = check_together(config)
    check_nodes(config.directory.resolve(), config.paths())
    return bound


def _draw_replay(bound: Bound, on_progress: OnProgress) -> None:
    """Samples of the pretrained model and its stored answers, unless they are there from an earlier run."""
    if bound.replay is not None and bound.replay.missing:
        bound.replay.draw(lambda done, total: on_progress({"phase": "replay", "step": done, "total": total}))
    if bound.answers is not None:
        bound.answers.ask(lambda done, total: on_progress({"phase": "teacher", "step": done, "total": total}))


def _finish(job: Job, directory: Path, on_progress: OnProgress) -> Run:
    def tell(text: str) -> None:
        note(directory, 0, "mirror", text)
        on_progress({"said": text})

    try:
        with at_work(directory) as alive, mirrored(_mirror(job.config, job.directory), tell):

            def hear(report: dict[str, Any]) -> None:
                alive()
                on_progress(report)

            launch(job, hear)
            run = Run(directory)
            write_card(run)
    except InputError:
        if not has_checkpoint(directory):
            shutil.rmtree(directory, ignore_errors=True)  # found out at calibration: the name is free again
        raise
    except RunError as error:
        raise RunError(f"{error}\n{_left_behind(directory)}") from error
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(_left_behind(directory)) from None
    return run


def _mirror(config: RunConfig, directory: Path) -> Mirror | None:
    return None if config.run.mirror is None else Mirror(directory, f"{config.run.mirror}/{config.run.name}")


def _left_behind(directory: Path) -> str:
    """How to go on with a run that ended early; of one that never began, nothing stays."""
    log = directory / "events.jsonl"
    if has_checkpoint(directory):
        return f"continue with `cdt resume {directory}`; the run's log is {log}"
    if log.is_file():
        return f"no checkpoint was saved yet; begin again with `cdt resume {directory}`; the run's log is {log}"
    shutil.rmtree(directory, ignore_errors=True)
    return "nothing was trained or written"


def _changed(run: Run, overrides: Sequence[str]) -> RunConfig:
    known = [*sorted(resumable(RunConfig)), *_budgets(run.config)]
    for override in overrides:
        path = override.partition("=")[0]
        if path not in known:
            raise InputError(f"{path} cannot change when a run is resumed; these can: {', '.join(known)}")
    path = run.directory / "config.yaml"
    return parse(RunConfig, apply_overrides(load_yaml(path), overrides), where=str(path))


def _budgets(config: RunConfig) -> list[str]:
    return [f"constraints.{name}.{constraint.budget_path}" for name, constraint in config.constraints.items()]


def _warm_checkpoint(config: RunConfig, bound: Bound) -> Path:
    """The checkpoint of ``run.fork`` at the end of its warm start, which must fit this run."""
    assert config.run.fork is not None
    origin = Run(config.run.fork)
    path = origin.directory.resolve() / "checkpoints" / checkpoint_name(config.train.warm_steps)
    if not is_complete(path):
        raise InputError(
            f"run.fork: {config.run.fork} has no complete checkpoint at step {config.train.warm_steps}, the end of its "
            "warm start (train.warm_steps)"
        )
    theirs, ours = _continued(origin.config), _continued(config)
    differing = [name for name in ours if theirs[name] != ours[name]]
    differing += [f"{name} of its data" for name in _differences(origin.data, _facts(bound))]
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


def _facts(bound: Bound) -> dict[str, Any]:
    """What data.json states of the data."""
    index, replay = bound.index, bound.replay
    return {
        "split": index.split,
        "shape": list(index.shape),
        "dtype": index.dtype,
        "class_names": index.class_names,
        "class_counts": index.class_counts.tolist(),
        "source": read_header(index.root).source,
        "init": _origin_facts(bound),
        "replay": None if replay is None else {"samples": replay.count(), "directory": str(replay.directory)},
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where data differ that a checkpoint was trained on and is to continue on."""
    return [name for name in ("shape", "dtype", "class_names", "class_counts") if one[name] != other[name]]


def _check_origin(data: Mapping[str, Any], bound: Bound) -> None:
    """Raises InputError when the pretrained model is not the one that a run began with."""
    begun, found = data.get("init"), _origin_facts(bound)
    if begun and found and begun["digest"] != found["digest"]:
        raise InputError(
            f"init: {found['directory']} is not what the run began with, {begun['directory']}: its weights, network or "
            "noise schedule have changed since"
        )


def _origin_facts(bound: Bound) -> dict[str, str] | None:
    origin = bound.origin
    return None if origin is None else {"directory": str(origin.pinned.resolve()), "digest": origin.digest()}


def _pinned(config: RunConfig, bound: Bound) -> RunConfig:
    """With the checkpoint that ``init`` means today: its run may go on, or remove it."""
    return config if bound.origin is None else config.model_copy(update={"init": bound.origin.pinned.resolve()})


def _lay_out(config: RunConfig, bound: Bound) -> None:
    """The run directory with what is known before the first step; nothing stays when the disk refuses."""
    directory = config.directory
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"cannot make {directory}: {error.strerror}") from error
    try:
        save_text(directory / "config.yaml", dump_yaml(config))
        save_text(directory / "data.json", json.dumps(_facts(bound), indent=1) + "\n")
    except RunError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
