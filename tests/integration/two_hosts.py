"""Two machines with an address each: namespaces of network and processes, joined by a cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

BIN = Path(sys.executable).parent
HEAD, OTHER = "192.0.2.1", "192.0.2.2"
PATIENCE_S = 400


class Hosts:
    """Two namespaces joined by a cable; commands that run in one of them.

    Each has its own processes: Ray looks among those that it sees for the node to connect to.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.nodes = home, list[subprocess.Popen[bytes]]()
        self.first = dict[str, subprocess.Popen[bytes]]()
        self.names = {HEAD: f"cdt-{os.getpid()}-a", OTHER: f"cdt-{os.getpid()}-b"}
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text("of these two hosts alone, and no other's")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "",
            "COLUMNS": "200",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def on(self, host: str, *command: str) -> list[str]:
        (first,) = psutil.Process(self.first[host].pid).children()
        return ["nsenter", f"--target={first.pid}", "--pid", "--mount", "--net", f"--wd={self.home}", *command]

    def make(self) -> None:
        """Raises CalledProcessError where it is not allowed."""
        a, b = self.names.values()
        lines = [f"netns add {a}", f"netns add {b}", f"-n {a} link add cable type veth peer name cable netns {b}"]
        for host, name in self.names.items():
            lines += [f"-n {name} addr add {host}/24 dev cable", f"-n {name} link set lo up"]
            lines += [f"-n {name} link set cable up"]
        for host, other in ((HEAD, OTHER), (OTHER, HEAD)):  # Ray looks for the address that leads outside
            lines.append(f"-n {self.names[host]} route add default via {other}")
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        for host, name in self.names.items():
            lasting = ["sh", "-c", "echo; exec sleep infinity"]
            first = subprocess.Popen(["ip", "netns", "exec", name, *own, *lasting], stdout=subprocess.PIPE)
            self.first[host] = first
            assert first.stdout is not None
            with first.stdout:
                if not first.stdout.readline():
                    raise subprocess.CalledProcessError(first.wait(), own)

    def remove(self) -> None:
        for process in self.first.values():  # and with it, all that it is the first of
            process.kill()
            process.wait()
        for node in self.nodes:
            node.wait(60)
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def join(self, host: str, *options: str) -> None:
        """A Ray node that has started. On a busy machine Ray may give up after half a minute."""
        said = self.home / f"{host}.log"
        command = self.on(host, "ray", "start", "--num-cpus=1", "--block", f"--temp-dir={self.home / host}", *options)
        for _ in range(3):
            with said.open("w") as out:
                node = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            self.nodes.append(node)
            while node.poll() is None:
                if "Ray runtime started" in said.read_text():
                    return
                time.sleep(0.2)
        raise AssertionError(said.read_text())

    def cdt(self, host: str, *arguments: str, status: int = 0) -> str:
        """What ``cdt`` prints."""
        command = self.on(host, sys.executable, "-m", "cdt", *arguments)
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return (done.stdout + done.stderr).strip()


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Skips the test where they cannot be made; what runs in them is killed at the end."""
    home = Path(tempfile.mkdtemp(prefix="cdt-", dir="/tmp"))  # sockets lie there, whose paths must be short
    hosts = Hosts(home)
    try:
        try:
            hosts.make()
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("network namespaces cannot be made here")
        yield hosts
    finally:
        hosts.remove()
        shutil.rmtree(home, ignore_errors=True)
