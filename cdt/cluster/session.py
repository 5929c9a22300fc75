"""Ray and DeepSpeed on this machine: what they need, and a Ray of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import ray
import torch
from ray._private import worker as ray_worker

from cdt.errors import InputError, RunError


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
