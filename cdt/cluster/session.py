"""Ray and DeepSpeed: what they need of a machine, a Ray of our own, or a cluster that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
import torch
from ray.exceptions import AuthenticationError

from cdt.cluster.import_path import own_path
from cdt.cluster.nodes import alive
from cdt.cluster.private_folder import SOCKET_PATH, private_folder
from cdt.cluster.ray_private import (
    CLUSTER_ID,
    job_variables,
    job_with_path,
    on_loopback,
    running_address,
    silence_workers,
)
from cdt.cluster.token import NOT_LET_IN, header, keep_private
from cdt.errors import CdtError, InputError, RunError

LOOPBACK = "127.0.0.1"
COMMUNICATION = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
"""Prefixes of variables that say how ranks communicate. Workers on this machine inherit them, others do not."""
LONGEST_TMPDIR = SOCKET_PATH - len("/pymp-12345678/listener-12345678")
"""Bytes above which processes that load data could not send their batches: their sockets are there."""
CONNECT_S = 5.0
BUSY_S = 10.0
"""Seconds for which resources of a run that has just ended may still count as taken."""


@dataclass(frozen=True)
class Slots:
    """Where workers can run: one per accelerator, else one per core."""

    kind: str
    """Ray's name of the resource: GPU or CPU."""
    count: int
    nodes: int

    def __str__(self) -> str:
        return f"{_number(self.count, self.kind)} on {_number(self.nodes, 'node')}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def passed_on() -> dict[str, str]:
    """The variables of this process's environment that workers on other nodes need to communicate as it would.

    Without those that they have from the job that this process belongs to: Ray refuses a variable that is set twice.
    """
    theirs = job_variables()
    return {name: value for name, value in os.environ.items() if name.startswith(COMMUNICATION) and name not in theirs}


def machine_slots() -> int:
    """How many workers this machine runs at once."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def cluster_slots(kind: str | None = None) -> Slots:
    """Those of the Ray that this process is connected to, busy or not; GPUs if there are any, or as ``kind`` says."""
    resources = [row["Resources"] for row in alive()]
    kind = kind or ("GPU" if any(row.get("GPU", 0) >= 1 for row in resources) else "CPU")
    counts = [int(row.get(kind, 0)) for row in resources]
    return Slots(kind, sum(counts), sum(count > 0 for count in counts))


def check_slots(workers: int) -> None:
    """Raises InputError when there are more workers than the machine, or the connected cluster, has room for."""
    if ray.is_initialized():
        if not workers:
            raise InputError("run.workers: 0 trains in this process; on a cluster it takes at least 1")
        slots = cluster_slots()
        if problem := missing_slots(workers, slots.kind, BUSY_S if workers <= slots.count else 0):
            raise InputError(f"run.workers: {problem}")
    elif workers > machine_slots():
        what = "accelerators" if torch.cuda.is_available() else "cores"
        raise InputError(f"run.workers: {workers} workers, but this machine has slots for {machine_slots()} ({what})")


def free_slots(kind: str) -> int:
    """How many more workers the connected cluster has room for at this moment."""
    return min(cluster_slots(kind).count, int(ray.available_resources().get(kind, 0)))


def missing_slots(workers: int, kind: str, patience_s: float, leaving: threading.Event | None = None) -> str | None:
    """What the connected cluster lacks for these workers after ``patience_s``, in words; None as soon as it has them.

    ``leaving`` ends the wait.
    """
    deadline, leaving = time.monotonic() + patience_s, leaving or threading.Event()
    while True:
        slots, free = cluster_slots(kind), free_slots(kind)
        if workers <= free:
            return None
        if time.monotonic() >= deadline or leaving.is_set():
            busy = f", {free} of them free" if workers <= slots.count else ""
            return f"asked for {_number(workers, 'worker')} × 1 {slots.kind}, the cluster has {slots}{busy}"
        leaving.wait(0.5)


def set_environment() -> None:
    """What DeepSpeed's just-in-time build, and processes that load data, need here and in workers that inherit it."""
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        os.environ["TMPDIR"], tempfile.tempdir = "/tmp", None
    binaries = str(Path(sys.prefix) / "bin")
    if binaries not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([binaries, os.environ["PATH"]])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2", "1")
    # A minute is too short where many workers import from a shared file system at once.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of our own for as long as the context lives, or the one that this process is connected to already.

    Others can neither reach its ports, except from this machine, nor open its files.

    Raises InputError if there is no place for its sockets, RunError if it does not start.
    """
    if ray.is_initialized():
        yield
        return
    with private_folder() as folder:
        settings = {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": machine_slots(),
            "num_gpus": torch.cuda.device_count(),  # Ray counts those that this torch cannot use, too
            "_node_ip_address": LOOPBACK,
            "_temp_dir": str(folder),
            "_system_config": {"enable_metrics_collection": False},
        }
        try:
            with on_loopback():
                _init(settings)
        except Exception as error:  # of a machine that does not suit it, Ray raises nearly anything
            raise RunError(f"Ray does not start on this machine: {error}") from error
        keep_private()
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """This process as a driver of a Ray cluster that runs already; nothing without an address.

    Raises InputError when no Ray answers there, when it wants another token, or when this machine is no node of it.
    """
    if address is None:
        yield
        return
    keep_private()
    try:
        found = running_address() if address == "auto" else address
        if found is None:
            raise ConnectionError
        _check_answers(found)
        _init({"address": found, "runtime_env": {"env_vars": passed_on()}})
    except AuthenticationError as error:
        raise InputError(f"--address {address}: {NOT_LET_IN}") from error
    except ConnectionError as error:
        remedy = "start one with `ray start --head`, or give HOST:PORT" if address == "auto" else "is that its port?"
        raise InputError(f"--address {address}: no Ray cluster is to be found: {remedy}") from error
    except CdtError:
        raise
    except Exception as error:  # Ray raises nearly anything
        if "Version mismatch" in str(error):
            versions = " ".join(str(error).split()).removeprefix("Version mismatch: ")
            raise InputError(f"--address {address}: Ray and Python must be the same everywhere: {versions}") from error
        raise InputError(
            f"--address {address}: this machine is no node of that cluster ({_last_line(error)}): join it with "
            f"`ray start --address={address}`, or send the run there with `cdt submit`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _init(where: Mapping[str, Any]) -> None:
    set_environment()
    silence_workers()
    with warnings.catch_warnings(), _own_signals():
        warnings.simplefilter("ignore")
        ray.init(**where, job_config=job_with_path(own_path()), log_to_driver=False, logging_level=logging.ERROR)


def _check_answers(address: str) -> None:
    """Ray itself waits for minutes. Raises InputError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise InputError(f"--address {address}: give HOST:PORT of the cluster's head (its port is 6379), or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: nothing answers there: {error}") from error
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_S)
            channel.unary_unary(CLUSTER_ID)(b"", timeout=CONNECT_S, metadata=header())
        except grpc.FutureTimeoutError as error:
            raise InputError(
                f"--address {address}: what answers there is not the head of a Ray cluster (its port is 6379, the "
                "dashboard's 8265)"
            ) from error
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(f"--address {address}: {NOT_LET_IN}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray handles SIGTERM itself and ends with a stack trace; the caller's handler is restored."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
