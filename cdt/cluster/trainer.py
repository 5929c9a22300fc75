"""Starts the workers of a run: under Ray Train, or in this process."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.train import RunConfig as RayRunConfig
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from torch._C._distributed_c10d import HashStore

from cdt.cluster.coordinator import Coordinator, Failure, RemoteCoordinator
from cdt.cluster.notice import notice
from cdt.errors import CdtError, InputError, RunError, Terminated
from cdt.training.checkpoint import newest_sound
from cdt.training.engine import start_deepspeed
from cdt.training.job import Job
from cdt.training.worker import Worker

OnProgress = Callable[[dict[str, Any]], None]
RAY_FOLDER = ".ray"
"""Where Ray checks that all nodes see the run directory; it leaves nothing else there."""


class WorkerDiedError(RunError):
    """A process is gone, and nothing says that it would not work the next time."""


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


def slots() -> int:
    """How many workers this machine runs at once: one per accelerator, else one per core."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def check_slots(workers: int) -> None:
    """Raises InputError when there are more workers than the machine has room for."""
    if workers > slots():
        what = "accelerators" if torch.cuda.is_available() else "cores"
        raise InputError(f"run.workers: {workers} workers, but this machine has slots for {slots()} ({what})")


def set_environment() -> None:
    """What DeepSpeed's just-in-time build needs, here and in the workers that inherit it."""
    binaries = str(Path(sys.prefix) / "bin")
    if binaries not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([binaries, os.environ["PATH"]])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of our own for as long as the context lives, or the one that runs already in this process."""
    if ray.is_initialized():
        yield
        return
    set_environment()
    # What Ray would still print with log_to_driver=False: paragraphs on each worker that died.
    ray_worker._worker_logs_enabled = False
    try:
        with warnings.catch_warnings(), _own_signals():
            warnings.simplefilter("ignore")
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                num_cpus=slots(),
            )
    except Exception as error:  # of a machine that does not suit it, Ray raises nearly anything
        raise RunError(f"Ray does not start on this machine: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and ends with a stack; who called decides what it means."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _run_here(job: Job, on_progress: OnProgress, given: threading.Event) -> bool:
    """Whether it came to its end."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        # It stays for the life of the process: DeepSpeed keeps references to the first group that it sees.
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    coordinator = Coordinator(job.directory, on_progress, given)
    try:
        start_deepspeed()
        Worker(job, coordinator).run()
    except Exception as error:
        told = _in_our_words(error)
        coordinator.note("failed", str(told))
        raise told from (None if told is error else error)
    return not coordinator.left()


def _run_under_ray(job: Job, on_progress: OnProgress, given: threading.Event) -> bool:
    """Whether it came to its end."""
    with local_ray():
        coordinator = RemoteCoordinator.start(job.directory)
        try:
            _persist(job, coordinator, on_progress, given)
            return not coordinator.left()
        except RayError as error:
            raise RunError(f"Ray failed: {error}") from error
        finally:
            coordinator.stop()
            shutil.rmtree(job.directory / RAY_FOLDER, ignore_errors=True)


def _persist(job: Job, coordinator: RemoteCoordinator, on_progress: OnProgress, given: threading.Event) -> None:
    """Trains to the end, and begins again at the newest sound checkpoint whenever a worker has died.

    Ray could restart workers as well, but any failure alike: bad data, say, would fail as often as it is tried.
    """
    barren = 0
    while True:
        try:
            _fit(_trainer(job, coordinator), coordinator, on_progress, given)
            return
        except TrainingFailedError as error:
            cause = _cause(error, coordinator.failures())
        found, passed_over = newest_sound(job.directory / "checkpoints")
        barren = 1 if found != job.checkpoint else barren + 1
        if not isinstance(cause, WorkerDiedError) or barren > job.config.run.max_restarts:
            coordinator.note("failed", str(cause))
            raise cause
        job = job.again(found)
        place = "the beginning" if found is None else found.name
        told = "; ".join([str(cause), *passed_over, f"again from {place}"])
        coordinator.note("restart", told)
        on_progress({"said": told})


def _trainer(job: Job, coordinator: RemoteCoordinator) -> TorchTrainer:
    workers, config = job.config.run.workers, job.config
    gpu = torch.cuda.is_available()
    return TorchTrainer(
        _work,
        train_loop_config={
            "job": job,
            "coordinator": coordinator,
            "threads": config.run.threads or max(1, (os.cpu_count() or 1) // workers),
        },
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"GPU" if gpu else "CPU": 1}
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RayRunConfig(name=RAY_FOLDER, storage_path=str(job.directory)),
    )


def _work(arguments: dict[str, Any]) -> None:
    """What Ray runs on each worker."""
    job, coordinator = arguments["job"], arguments["coordinator"]
    try:
        torch.set_num_threads(arguments["threads"])
        start_deepspeed()
        Worker(job, coordinator).run()
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


def _cause(error: TrainingFailedError, failures: list[Failure]) -> CdtError:
    """Of everything that went wrong, what came first: a worker that died takes others with it, and says nothing."""
    silent = sorted(set(getattr(error, "worker_failures", {})) - {failure.rank for failure in failures})
    if silent:
        return WorkerDiedError(
            f"worker {silent[0]} died: killed from outside, by the kernel for want of memory (`dmesg` tells), or by a "
            "crash in native code (its last words are in /tmp/ray/session_latest/logs)"
        )
    return failures[0].error if failures else RunError(f"Ray cannot run the workers: {error}")


def _fit(
    trainer: TorchTrainer, coordinator: RemoteCoordinator, on_progress: OnProgress, given: threading.Event
) -> None:
    """Trains in a thread of its own; this one passes on what the coordinator hears, four times a second.

    In the main thread, Ray would take Ctrl-C for itself, and answer only once all workers are up.
    """
    result: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            result.set_result(None)
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    asked = False
    while not wait([result], timeout=0.25).done:
        if given.is_set() and not asked:
            coordinator.ask_to_leave()
            asked = True
        if report := coordinator.latest():
            on_progress(report)
    if report := coordinator.latest():
        on_progress(report)
    result.result()
