"""How the workers' processes find each other, and where what they print goes."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.train import get_context
from ray.train.torch import TorchConfig

from cdt.cluster.ray_train_private import TorchBackend, WorkerGroupCallback, process_of
from cdt.cluster.watchdog import Process, Watcher, pulse

LOGS = "logs"
"""Folder of a run directory."""


class Started(WorkerGroupCallback):
    """Registers workers as soon as Ray knows them: one that stops before its first heartbeat is noticed."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        for rank, worker in enumerate(workers):
            self._watcher.expect(rank, Process(*process_of(worker)))
        return {}


class NodesBackend(TorchBackend):
    """torch.distributed over the addresses of Ray's nodes; the watchdog runs while the process group forms."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(watch_forming, backend_config.watcher)
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class NodesTorchConfig(TorchConfig):
    watcher: Watcher | None = None

    @property
    def backend_cls(self) -> type[NodesBackend]:
        return NodesBackend


_forming = contextlib.ExitStack()


def watch_forming(watcher: Watcher) -> None:
    """Sends a worker's heartbeats from now until it trains; the others would wait for one that is stopped."""
    _forming.enter_context(pulse(get_context().get_world_rank(), watcher))


def formed() -> None:
    """The process group is ready; from now on the thread that trains sends heartbeats."""
    _forming.close()


def name_interface() -> None:
    """Unless the user chose one. The default of gloo is the address of the host's name: on many machines, loopback."""
    address = ray.util.get_node_ip_address()
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def log_to(directory: Path, rank: int) -> None:
    """Redirects all output of this process to the run directory, also that of native code."""
    (directory / LOGS).mkdir(exist_ok=True)
    with (directory / LOGS / f"rank-{rank}.log").open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
