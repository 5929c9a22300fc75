"""A run from its configuration: checked, given a directory, launched. Users call this as cdt.train and cdt.resume."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdt import filenames
from cdt.checkpoints.checkpoint import newest_sound, read_state
from cdt.cluster.memory_room import check_memory, train_on_gpus
from cdt.cluster.nodes import check_nodes
from cdt.cluster.session import check_slots, cluster
from cdt.cluster.trainer import launch
from cdt.config import RunConfig
from cdt.errors import DamagedWarning, InputError, RunError, refusal
from cdt.files import read_text, resolved
from cdt.monitor.journal import note
from cdt.origin.resolve import resolve
from cdt.records import LIMIT
from cdt.runs.continuity import (
    changed,
    check_layout,
    check_origin,
    check_state,
    check_unfinished,
    data_facts,
    differences,
    facts_now,
    other_classifiers,
    other_samples,
    pinned,
    warm_checkpoint,
)
from cdt.runs.lost import check_not_lost
from cdt.runs.mirror import Mirror, mirrored
from cdt.runs.presence import at_work
from cdt.runs.run import Run, has_checkpoint, save_text, write_card
from cdt.settings import dump_yaml
from cdt.spelling import printable
from cdt.training.binding import Bound
from cdt.training.check import check as check_together
from cdt.training.health import UnsoundEndError
from cdt.training.job import Job

OnProgress = Callable[[dict[str, Any]], None]


class Checked(NamedTuple):
    """A new run that can start."""

    config: RunConfig
    """Resolved: it states what the pretrained model decides."""
    bound: Bound
    warm: Path | None
    """The checkpoint that it forks from."""


def check(config: RunConfig, *, accept_data: bool = False) -> Checked:
    """Everything that can be refused before a new run starts. ``accept_data`` is as in ``train``. Raises InputError."""
    config = resolve(config)
    if config.directory.exists():
        begun = (config.directory / filenames.CONFIG).is_file()
        remedy = f", or continue it with `cdt resume {config.directory}`" if begun else ""
        raise InputError(f"{config.directory} exists already: choose another name, run.name=NAME{remedy}")
    bound = _fit_together(config)
    bound.index.check_sizes()
    if mirror := _mirror(config, config.directory):
        mirror.check_new()
    warm = None if config.run.fork is None else warm_checkpoint(config, bound, accept_data=accept_data)
    return Checked(config, bound, warm)


def train(
    config: RunConfig,
    on_progress: OnProgress = lambda report: None,
    address: str | None = None,
    *,
    accept_data: bool = False,
) -> Run:
    """Trains a new run to its end, on this machine or on the Ray cluster at ``address`` (HOST:PORT or auto).

    ``accept_data``: whether ``run.fork`` may have been trained on other samples; that is then recorded as an event.

    Raises InputError before anything is written when the configuration, the data and the machine do not fit together;
    RunError when the run fails later: what it wrote stays, and ``resume`` continues it. So does KeyboardInterrupt.
    """
    with cluster(address):
        config, bound, warm = check(config, accept_data=accept_data)
        _draw_replay(bound, on_progress)
        directory, config = config.directory, pinned(config.anchored(), bound)
        facts = data_facts(config, bound)
        _lay_out(config, facts)
        if config.run.fork is not None:
            others = other_samples(Run(config.run.fork).data, facts)
            _tell_of_others(directory, 0, others, "other samples", on_progress)
        job = Job(config, config.directory, checkpoint=warm, fork=warm is not None)
        try:
            return _finish(job, directory, on_progress)
        except InputError:
            if not has_checkpoint(directory):
                shutil.rmtree(directory, ignore_errors=True)  # found out at calibration: the name is free again
            raise


def resume(
    directory: str | Path,
    overrides: Sequence[str] = (),
    on_progress: OnProgress = lambda report: None,
    address: str | None = None,
    *,
    accept_data: bool = False,
) -> Run:
    """Continues a run from its newest sound checkpoint, or from its beginning where it never had one.

    ``overrides`` change budgets, and settings that are marked as ``RESUMABLE``; ``address`` is as in ``train``.
    ``accept_data``: whether the samples may be others than before, of the same classes and counts, and the classifiers
    of constraints, too; that is recorded as an event, and from then on these are the run's.

    Raises InputError when there is nothing to continue, nothing left to do, or something else would change; RunError
    when no checkpoint is intact, or the run fails later.
    """
    with cluster(address):
        run = Run(directory)
        check_layout(run.directory)
        with at_work(run.directory):  # of two commands, the second one must not even write
            return _resume(run, overrides, on_progress, accept_data=accept_data)


def _resume(run: Run, overrides: Sequence[str], on_progress: OnProgress, *, accept_data: bool) -> Run:
    config = changed(run, overrides).anchored()
    if mirror := _mirror(config, run.directory):
        mirror.check_behind()
    sound, passed_over = newest_sound(resolved(run.directory) / filenames.CHECKPOINTS)
    if sound is None:
        check_not_lost(run)
    state = read_state(sound) if sound else None
    if state:
        check_unfinished(run.directory, state, config)
    bound = _fit_together(config)
    bound.index.check_sizes(spare=config.data.max_bad_fraction)
    facts = data_facts(config, bound)
    if differing := differences(run.data, facts):
        raise InputError(f"data.shards: {config.data.shards} differs from the run's data in {', '.join(differing)}")
    if (others := other_samples(run.data, facts)) and not accept_data:
        raise InputError(
            f"{', '.join(others)}: these are not the samples that the run was trained on, though they are as many of "
            f"the same classes; if that is wanted: `cdt resume {run.directory} --accept-data`"
        )
    if (judged := other_classifiers(run.data, facts)) and not accept_data:
        raise InputError(
            f"{', '.join(judged)}: the classifier is not the one that the run was begun with, and its shares are not "
            f"comparable; if that is wanted: `cdt resume {run.directory} --accept-data`"
        )
    if sound and state:
        check_state(sound, state, bound)
    check_origin(run.data, bound)
    _draw_replay(bound, on_progress)
    config = pinned(config, bound)
    fork = config.run.fork is not None and sound is None
    checkpoint = warm_checkpoint(config, bound, accept_data=accept_data) if fork else sound
    stated = {name: read_text(run.directory / name, LIMIT) for name in (filenames.CONFIG, filenames.DATA)}
    save_text(run.directory / filenames.CONFIG, dump_yaml(config))
    save_text(run.directory / filenames.DATA, json.dumps(facts_now(run.data, facts), indent=1) + "\n")
    step = state.step if state else 0
    for problem in passed_over:
        text = f"{problem}; it is passed over, {sound.name if sound else 'the beginning'} is taken"
        note(run.directory, step, "damaged", text)
        on_progress({"said": text})
    _tell_of_others(run.directory, step, others, "other samples", on_progress)
    _tell_of_others(run.directory, step, judged, "another classifier", on_progress)
    try:
        job = Job(config, resolved(run.directory), checkpoint, fork)
        return _finish(job, run.directory, on_progress, passed_over)
    except InputError:
        for name, text in stated.items():
            save_text(run.directory / name, text)
        raise


def _tell_of_others(directory: Path, step: int, settings: Sequence[str], what: str, on_progress: OnProgress) -> None:
    if settings:
        text = f"{', '.join(settings)}: {what} than before, which was accepted"
        note(directory, step, "data changed", text)
        on_progress({"said": text})


def _fit_together(config: RunConfig) -> Bound:
    """Raises InputError unless configuration, data and machine fit together."""
    check_slots(config.run.min_workers or config.run.workers)
    bound = check_together(config)
    answers = check_nodes(resolved(config.directory), config.paths())
    check_memory(*bound.weights, config.engine, config.workers_used(), answers, on_gpus=train_on_gpus())
    return bound


def _draw_replay(bound: Bound, on_progress: OnProgress) -> None:
    """Samples of the pretrained model and its stored answers, unless they are there from an earlier run."""
    if bound.replay is not None and bound.replay.missing:
        bound.replay.draw(lambda done, total: on_progress({"phase": "replay", "step": done, "total": total}))
    if bound.answers is not None:
        bound.answers.ask(lambda done, total: on_progress({"phase": "teacher", "step": done, "total": total}))


def _finish(job: Job, directory: Path, on_progress: OnProgress, passed_over: Sequence[str] = ()) -> Run:
    """``passed_over``: what is known of damaged checkpoints and need not be said again."""

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
            with warnings.catch_warnings():
                known = rf".*: {re.escape('; '.join(passed_over))}; (it is|they are) passed over"
                warnings.filterwarnings("ignore", known, DamagedWarning)
                write_card(run)
    except UnsoundEndError:
        raise  # nothing is left to resume
    except RunError as error:
        raise RunError(f"{error}\n{printable(_left_behind(directory))}") from error
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(printable(_left_behind(directory))) from None
    return run


def _mirror(config: RunConfig, directory: Path) -> Mirror | None:
    return None if config.run.mirror is None else Mirror(directory, f"{config.run.mirror}/{config.run.name}")


def _left_behind(directory: Path) -> str:
    """How to continue a run that ended early; the directory of one that never began is removed."""
    log = directory / filenames.EVENTS
    if has_checkpoint(directory):
        return f"continue with `cdt resume {directory}`; the run's log is {log}"
    if log.is_file():
        return f"no checkpoint was saved yet; begin again with `cdt resume {directory}`; the run's log is {log}"
    shutil.rmtree(directory, ignore_errors=True)
    return "nothing was trained or written"


def _lay_out(config: RunConfig, facts: dict[str, Any]) -> None:
    """The run directory with what is known before the first step; nothing stays when the disk refuses."""
    directory = config.directory
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise refusal(error, f"cannot make {directory}") from error
    try:
        save_text(directory / filenames.CONFIG, dump_yaml(config))
        save_text(directory / filenames.DATA, json.dumps(facts, indent=1) + "\n")
    except RunError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
