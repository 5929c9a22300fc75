"""The processes of tools/chaos.py: the command, and two Ray nodes on this machine; only these are ended, by id."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 900
WORKER, COORDINATOR = "ray::RayTrainWorker", "ray::Coordinator"
HEAD, SECOND = "127.0.0.1", "127.0.0.2"


def wait_until(happened: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What it returns as soon as that is true. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while not (found := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {patience_s} s")
        time.sleep(0.02)
    return found


class Family:
    """A process and all that it has started; those that it left behind, too."""

    def __init__(self, process: psutil.Popen) -> None:
        self.process = process
        self._started: dict[int, psutil.Process] = {}

    def living(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started |= {child.pid: child for child in self.process.children(recursive=True)}
        return [process for process in self._started.values() if process.is_running()]

    def end(self) -> None:
        for process in (*self.living(), self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def named(families: Iterable[Family], name: str) -> list[psutil.Process]:
    """Those of some families whose titles begin so."""
    found = []
    for process in (process for family in families for process in family.living()):
        try:
            if process.cmdline()[0].startswith(name):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return sorted(found, key=lambda process: process.pid)


class Cluster:
    """Two Ray nodes of one core each, with addresses of their own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._joined = 0
        self._home = Path(tempfile.mkdtemp(prefix="cdt-", dir="/tmp"))  # sockets lie there, whose paths must be short
        token = self._home / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.address = f"{HEAD}:{port}"
        self.nodes: dict[str, Family] = {}
        self.join(HEAD, "--head", f"--port={port}", "--include-dashboard=false")
        self.join(SECOND, f"--address={self.address}")

    def join(self, address: str, *options: str) -> None:
        """On a busy machine Ray gives up after half a minute; then the same again."""
        for _ in range(5):
            self._joined += 1
            said = self._home / f"{self._joined}.log"
            command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", *options]
            command += [f"--node-ip-address={address}", f"--temp-dir={self._home / str(self._joined)}"]
            with said.open("w") as out:
                node = Family(psutil.Popen(command, env=self.environment, stdout=out, stderr=out))
            started = lambda node=node, said=said: "runtime started" in said.read_text() or node.process.poll()  # noqa: E731
            wait_until(started, "a node")
            if node.process.poll() is None:
                self.nodes[address] = node
                return
            node.end()
        raise RuntimeError(f"no node joins Ray; its logs are in {self._home}")

    def replace(self, address: str) -> None:
        """Loses a node; another one joins."""
        self.lose(address)
        self.join(f"127.0.0.{2 + self._joined}", f"--address={self.address}")

    def lose(self, address: str) -> None:
        """All of its processes, by SIGKILL."""
        self.nodes.pop(address).end()

    def end(self) -> None:
        for address in list(self.nodes):
            self.lose(address)
        shutil.rmtree(self._home, ignore_errors=True)


class Command(Family):
    """``cdt`` in a session of its own."""

    def __init__(self, home: Path, cluster: Cluster | None, *arguments: str) -> None:
        self._said, self.arguments = home / "output.txt", arguments
        environment, where = dict(os.environ), []
        if cluster is not None:
            environment, where = cluster.environment, ["--address", cluster.address]
        with self._said.open("w") as output:
            command = [sys.executable, "-m", "cdt", *arguments, *where]
            super().__init__(
                psutil.Popen(
                    command, cwd=home, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            )

    def said(self) -> str:
        return self._said.read_text()
