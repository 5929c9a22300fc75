"""How the workers' processes find each other, and where what they print goes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.train import get_context
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] (torch documents it)

from cdt import filenames
from cdt.cluster.ray_train_private import TorchBackend, WorkerGroupCallback, process_of
from cdt.cluster.session import LOOPBACK
from cdt.cluster.watchdog import Process, Watcher, pulse


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
        addresses = set(worker_group.execute(ray.util.get_node_ip_address))
        if len(addresses) > 1 or LOOPBACK in addresses:
            worker_group.execute(name_interface)
        group: Any = OnLoopback(worker_group) if addresses == {LOOPBACK} else worker_group
        super().on_start(group, backend_config)


class OnLoopback:
    """A group of workers whose rank 0 says where the others meet, once it listens there on loopback alone."""

    def __init__(self, worker_group: Any) -> None:
        self._group = worker_group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def __len__(self) -> int:
        return len(self._group)

    def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
        """Ray asks for a free port; torch would then listen there on all addresses."""
        return self._group.execute_single(rank, open_store)


_stores: list[TCPStore] = []


def open_store() -> tuple[str, int]:
    """Address and port of a store of torch.distributed; torch uses the one that this process has at a port."""
    listening = socket.create_server((LOOPBACK, 0))
    port = listening.getsockname()[1]
    options = {"multi_tenant": True, "wait_for_workers": False, "master_listen_fd": listening.detach()}
    _stores.append(TCPStore(LOOPBACK, port, is_master=True, **options))
    return LOOPBACK, port


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
    (directory / filenames.LOGS).mkdir(exist_ok=True)
    with (directory / filenames.LOGS / f"rank-{rank}.log").open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
