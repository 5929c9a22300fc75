"""Starts the workers of a run: under Ray Train, or in this process."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from torch._C._distributed_c10d import HashStore

from cdt.cluster.backend import LOGS, NodesTorchConfig, log_to
from cdt.cluster.coordinator import Coordinator, Failure, RemoteCoordinator
from cdt.cluster.nodes import alive, tell_nodes
from cdt.cluster.notice import notice
from cdt.cluster.restarts import WorkerDiedError, persist
from cdt.cluster.session import BUSY_S, cluster_slots, local_ray, missing_slots, set_environment
from cdt.errors import CdtError, RunError, Terminated
from cdt.training.engine import start_deepspeed
from cdt.training.job import Job
from cdt.training.worker import Worker

OnProgress = Callable[[dict[str, Any]], None]
RAY_FOLDER = ".ray"
"""Where Ray checks that all nodes see the run directory; it leaves nothing else there."""
FRUITLESS_STARTS = 2
"""Of the group of workers, in a row, each after five minutes in which it did not come up."""


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
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    coordinator = Coordinator(job.directory, on_progress, given)
    try:
        start_deepspeed()
        return Worker(job, coordinator).run()
    except Exception as error:
        told = _in_our_words(error)
        coordinator.note("failed", str(told))
        raise told from (None if told is error else error)


def _run_under_ray(job: Job, on_progress: OnProgress, given: threading.Event) -> bool:
    """Whether it came to its end."""
    with local_ray():
        coordinator = RemoteCoordinator.start(job.directory)
        kind = cluster_slots().kind  # a run that has lost its GPUs does not go on without

        def attempt(job: Job) -> bool:
            if not _places(job, kind, tell, given):
                return False
            before = _addresses()
            try:
                return _fit(_trainer(job, kind, coordinator), coordinator, on_progress, given)
            except TrainingFailedError as error:
                lost = [address for node, address in before.items() if node not in _addresses()]
                raise _cause(error, coordinator.failures(), job.directory, lost) from None

        def tell(text: str, kind: str = "restart") -> None:
            coordinator.note(kind, text)
            on_progress({"said": text})

        try:
            for answer in tell_nodes():
                coordinator.note("node", answer.sentence(), **answer.recorded())
            return persist(job, attempt, tell)
        except RayError as error:
            raise RunError(f"Ray failed: {error}") from error
        except CdtError as error:
            coordinator.note("failed", str(error))
            raise
        finally:
            coordinator.stop()
            shutil.rmtree(job.directory / RAY_FOLDER, ignore_errors=True)


def _addresses() -> dict[str, str]:
    """Of the nodes that live, by their ids."""
    return {row["NodeID"]: row["NodeManagerAddress"] for row in alive()}


def _places(job: Job, kind: str, tell: Callable[[str, str], None], given: threading.Event) -> bool:
    """Waits until there is room for all workers; whether there is, or a notice to leave came first.

    Raises RunError after ``run.patience_minutes``.
    """
    settings = job.config.run
    problem = missing_slots(settings.workers, kind, BUSY_S, given)
    if problem and not given.is_set():
        tell(f"{problem}; waiting up to {settings.patience_minutes:g} minutes for more", "waiting")
        problem = missing_slots(settings.workers, kind, 60 * settings.patience_minutes, given)
    if problem and not given.is_set():
        raise RunError(f"{problem}, after {settings.patience_minutes:g} minutes (run.patience_minutes)")
    return problem is None


def _trainer(job: Job, kind: str, coordinator: RemoteCoordinator) -> TorchTrainer:
    settings, gpu = job.config.run, kind == "GPU"
    return TorchTrainer(
        _work,
        train_loop_config={"job": job, "coordinator": coordinator},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpu,
            resources_per_worker={kind: 1},
            placement_strategy=settings.placement.upper(),
        ),
        torch_config=NodesTorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RayRunConfig(
            name=RAY_FOLDER,
            storage_path=str(job.directory),
            failure_config=FailureConfig(controller_failure_limit=FRUITLESS_STARTS),
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
        return Worker(job, coordinator).run()
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
    """Of everything that went wrong, what came first: a worker that died takes others with it, and says nothing."""
    silent = sorted(set(getattr(error, "worker_failures", {})) - {failure.rank for failure in failures})
    if lost and (silent or not failures):
        return WorkerDiedError(f"node {', '.join(lost)} is lost, and its workers with it")
    if silent:
        return WorkerDiedError(
            f"worker {silent[0]} died: killed from outside, by the kernel for want of memory (`dmesg` tells), or by a "
            f"crash in native code (its last words are in {directory / LOGS}/rank-{silent[0]}.log)"
        )
    return failures[0].error if failures else RunError(f"Ray cannot run the workers: {error}")


def _fit(
    trainer: TorchTrainer, coordinator: RemoteCoordinator, on_progress: OnProgress, given: threading.Event
) -> bool:
    """Trains in a thread of its own; this one passes on what the coordinator hears, four times a second.

    In the main thread, Ray would take Ctrl-C for itself, and answer only once all workers are up. Returns what the
    first rank does: whether the run came to its end.
    """
    result: Future[bool] = Future()

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
        if report := coordinator.latest():
            on_progress(report)
    if report := coordinator.latest():
        on_progress(report)
    return result.result()
