"""Starts the workers of a run: under Ray Train, or in this process."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer

from cdt import filenames
from cdt.cluster.backend import NodesTorchConfig, Started, formed, log_to
from cdt.cluster.coordinator import Coordinator, Failure, RemoteCoordinator
from cdt.cluster.nodes import alive, tell_nodes
from cdt.cluster.notice import notice
from cdt.cluster.restarts import WorkerDiedError, persist
from cdt.cluster.room import Workers, wait_for_room
from cdt.cluster.session import cluster_slots, local_ray, set_environment
from cdt.cluster.watchdog import Hang, Watcher, pulse
from cdt.config import RunConfig
from cdt.engine.engine import start_deepspeed
from cdt.engine.numerics import reproducible
from cdt.engine.ranks import collectives
from cdt.errors import CdtError, RunError, Terminated
from cdt.training.assemble import assemble
from cdt.training.job import Job
from cdt.training.worker import Worker

OnProgress = Callable[[dict[str, Any]], None]
RAY_FOLDER = ".ray"
"""Where Ray checks that all nodes see the run directory; it leaves nothing else there."""
NODE_GONE_S = 20.0
"""Until Ray has noticed that a machine is gone, and no longer counts its room."""
FRUITLESS_STARTS = 2
"""Consecutive starts of the group of workers, each after five minutes without all workers."""


def launch(job: Job, on_progress: OnProgress) -> None:
    """Runs a prepared job to its end.

    Raises what ended it, once, and records it in events.jsonl: a worker's InputError or RunError as it is, anything
    else as RunError with the worker's own traceback. KeyboardInterrupt ends it within seconds; at SIGTERM the workers
    save first, and Terminated is raised.
    """
    set_environment()
    with notice() as given:
        run = _run_here if job.config.run.workers == 0 else _run_under_ray
        if not run(job, on_progress, given):
            raise Terminated


def _run_here(job: Job, on_progress: OnProgress, given: threading.Event) -> bool:
    """Whether it came to its end."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        # It stays for the life of the process: DeepSpeed keeps references to the first group that it sees.
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] (torch documents it)
        dist.init_process_group(collectives(gpus=torch.cuda.is_available()), store=store, rank=0, world_size=1)
    coordinator = Coordinator(job.directory, on_progress, given)

    def tell(kind: str, text: str) -> None:
        coordinator.note(kind, text)
        on_progress({"said": text})

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(job.config.run.threads or threads)
        start_deepspeed()
        with reproducible(job.config.engine.deterministic):
            return persist(job, lambda job: Worker(assemble(job), coordinator).run(), tell)
    except Exception as error:
        told = _in_our_words(error)
        coordinator.note("failed", str(told))
        raise told from (None if told is error else error)
    finally:
        torch.set_num_threads(threads)  # of the caller's process


def _run_under_ray(job: Job, on_progress: OnProgress, given: threading.Event) -> bool:
    """Whether it came to its end."""
    with local_ray():
        coordinator = RemoteCoordinator.start(job.directory)
        kind = cluster_slots().kind  # a run that has lost its GPUs does not continue on CPUs

        def attempt(job: Job) -> bool:
            if (workers := wait_for_room(job.config, kind, tell, given)) is None:
                return False
            coordinator.forget_workers()
            before = _addresses()
            try:
                return _fit(job, workers, coordinator, on_progress, given)
            except TrainingFailedError as error:
                lost = [address for node, address in before.items() if node not in _addresses()]
                raise _cause(error, coordinator.failures(), job.directory, lost) from None

        def tell(kind: str, text: str) -> None:
            coordinator.note(kind, text)
            on_progress({"said": text})

        def begins_again(kind: str, text: str) -> None:
            tell(kind, text)
            if kind == "restart" and job.config.run.min_workers and len(ray.nodes()) > 1:
                time.sleep(NODE_GONE_S)

        try:
            for answer in tell_nodes():
                coordinator.note("node", answer.sentence(), **answer.recorded())
            return persist(job, attempt, begins_again)
        except RayError as error:
            raise RunError(f"Ray failed: {error}") from error
        except CdtError as error:
            coordinator.note("failed", str(error))
            raise
        finally:
            coordinator.stop()
            shutil.rmtree(job.directory / RAY_FOLDER, ignore_errors=True)


def _addresses() -> dict[str, str]:
    """Addresses of the nodes that are alive, by their ids."""
    return {row["NodeID"]: row["NodeManagerAddress"] for row in alive()}


def _trainer(job: Job, workers: Workers, coordinator: RemoteCoordinator) -> TorchTrainer:
    settings, gpu = job.config.run, workers.kind == "GPU"
    callbacks: list[Any] = [Started(_watcher(job, coordinator))]  # Ray takes more kinds of them than it says
    return TorchTrainer(
        _work,
        train_loop_config={"job": job, "coordinator": coordinator},
        scaling_config=ScalingConfig(
            num_workers=workers.number,
            use_gpu=gpu,
            resources_per_worker={workers.kind: 1},
            placement_strategy=settings.placement.upper(),
        ),
        # What hangs is ended by the watchdog, by name; a collective that gave up before would end the run.
        torch_config=NodesTorchConfig(
            backend=collectives(gpus=gpu),
            timeout_s=round(1800 + 2 * _patience(job.config)),
            watcher=_watcher(job, coordinator),
        ),
        run_config=RayRunConfig(
            name=RAY_FOLDER,
            storage_path=str(job.directory),
            failure_config=FailureConfig(controller_failure_limit=FRUITLESS_STARTS),
            callbacks=callbacks,
        ),
    )


def _work(arguments: dict[str, Any]) -> bool:
    """What Ray runs on each worker; whether the run came to its end."""
    job, coordinator = arguments["job"], arguments["coordinator"]
    try:
        log_to(job.directory, dist.get_rank())
        set_environment()
        cores = (os.cpu_count() or 1) // get_context().get_local_world_size()
        torch.set_num_threads(job.config.run.threads or max(1, cores))
        start_deepspeed()
        formed()
        deterministic = reproducible(job.config.engine.deterministic)
        with deterministic, pulse(dist.get_rank(), _watcher(job, coordinator)) as at_step:
            worker = Worker(assemble(job), coordinator)
            at_step(lambda: worker.step)
            return worker.run()
    except Exception as error:
        coordinator.failed(Failure(dist.get_rank(), _in_our_words(error)))
        raise


def _in_our_words(error: Exception) -> CdtError:
    """What a worker raised, for the user: our own errors and full disks in a line, a bug with its traceback."""
    if isinstance(error, CdtError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk is full: cannot write {error.filename or 'the run'}")
    return RunError(f"worker {dist.get_rank()} failed:\n{''.join(traceback.format_exception(error)).rstrip()}")


def _cause(error: TrainingFailedError, failures: list[Failure], directory: Path, lost: list[str]) -> CdtError:
    """The first of all failures: a worker that died makes others fail, and reports nothing itself."""
    silent = sorted(set(getattr(error, "worker_failures", {})) - {failure.rank for failure in failures})
    if lost and (silent or not failures):
        return WorkerDiedError(f"node {', '.join(lost)} is lost, and its workers with it")
    if silent:
        return WorkerDiedError(
            f"worker {silent[0]} died: killed from outside, by the kernel because memory ran out (see `dmesg`), or by "
            f"a crash in native code (its last words are in {directory / filenames.LOGS}/rank-{silent[0]}.log)"
        )
    return failures[0].error if failures else RunError(f"Ray cannot run the workers: {error}")


def _patience(config: RunConfig) -> float:
    return 60 * config.run.hang_minutes


def _beat_s(config: RunConfig) -> float:
    """Seconds between two heartbeats."""
    return min(10.0, _patience(config) / 10)


def _watcher(job: Job, coordinator: RemoteCoordinator) -> Watcher:
    return Watcher(job.directory, coordinator.expect, _beat_s(job.config), coordinator.beat, coordinator.leave)


def _fit(
    job: Job, workers: Workers, coordinator: RemoteCoordinator, on_progress: OnProgress, given: threading.Event
) -> bool:
    """Trains in a thread of its own; this one passes on what the coordinator hears, four times a second.

    In the main thread, Ray would take Ctrl-C for itself, and answer only once all workers are up. Returns what the
    first rank does: whether the run came to its end. Raises WorkerDiedError when it had to end workers that hung.
    """
    trainer, patience = _trainer(job, workers, coordinator), _patience(job.config)
    result: Future[bool] = Future()
    hang: str | None = None
    before: dict[str, Any] = {}

    def fit() -> None:
        try:
            result.set_result(bool(trainer.fit().return_value))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    while not wait([result], timeout=0.25).done:
        if given.is_set():
            # Each time: a coordinator that began again has forgotten it.
            coordinator.ask_to_leave()
        seen = coordinator.look(patience)
        if seen.report:
            on_progress(seen.report)
        if seen.hang:
            hang, before = _end_hanging(seen.hang, coordinator, job), seen.report
            coordinator.note("hang", hang)
            coordinator.forget_workers()  # they are killed; Ray may start others within this attempt
        elif seen.report != before:
            hang = None  # of workers that had not yet trained; Ray itself began again, with others
    if hang and result.exception():
        raise WorkerDiedError(hang)
    if report := coordinator.look(patience).report:
        on_progress(report)
    return result.result()


def _end_hanging(hang: Hang, coordinator: RemoteCoordinator, job: Job) -> str:
    """Kills processes that hang, once those that can have written their stacks; returns the message."""
    coordinator.show_stacks()
    time.sleep(2 * _beat_s(job.config))
    states = [process.end() for process in hang.processes]
    each = [f"{process.pid} {state}" for process, state in zip(hang.processes, states, strict=True)]
    told = states[0] if len(set(states)) == 1 else ", ".join(each)
    return f"{hang.text} ({told}); stacks are in {job.directory / filenames.STACKS}"
