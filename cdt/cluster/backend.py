"""How the workers' processes find each other, and where what they print goes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

LOGS = "logs"
"""Folder of a run directory."""


class NodesBackend(_TorchBackend):
    """torch.distributed over the addresses by which Ray's nodes know each other."""

    def on_start(self, worker_group, backend_config) -> None:
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class NodesTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[NodesBackend]:
        return NodesBackend


def name_interface() -> None:
    """Unless the user chose one. By itself gloo takes the address of the host's name: on many machines, loopback."""
    address = ray.util.get_node_ip_address()
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def log_to(directory: Path, rank: int) -> None:
    """All that this process and its libraries print from now on, native code's last words too, goes to the run."""
    (directory / LOGS).mkdir(exist_ok=True)
    with (directory / LOGS / f"rank-{rank}.log").open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
