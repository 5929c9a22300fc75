"""Two network namespaces, each with an address of its own, as two machines: what binds to loopback is not reached."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdt.data.shard import shard
from cdt.data.sources import SOURCES

pytestmark = pytest.mark.slow
pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed: no dashboard")

BIN = Path(sys.executable).parent
HEAD, OTHER = "192.0.2.1", "192.0.2.2"
ADDRESS = f"{HEAD}:6379"
PATIENCE_S = 400
CONFIG = """
run: {workers: 2, threads: 1, placement: spread}
data: {shards: data, epoch_samples: 64}
network: {kind: dit, patch: 4, width: 16, depth: 1, heads: 2}
constraints:
  four: {class: 4, min_frequency: 0.2}
probe: {draws: 16}
train: {batch_size: 16, warm_steps: 8, dual_steps: 8, checkpoint_steps: 8, lr: 0.002, log_steps: 4, grid_images: 0}
"""


class Hosts:
    """Two namespaces joined by a cable; commands that run in one of them."""

    def __init__(self, home: Path) -> None:
        self.home, self.nodes = home, list[subprocess.Popen[bytes]]()
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
        return ["ip", "netns", "exec", self.names[host], *command]

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

    def remove(self) -> None:
        for name in self.names.values():
            for _ in range(2):  # what the first killed had just started
                told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
                for process in told.stdout.split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                time.sleep(0.5)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for node in self.nodes:
            node.wait(60)

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
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    home = Path(tempfile.mkdtemp(prefix="cdt-", dir="/tmp"))  # sockets lie there, whose paths must be short
    hosts = Hosts(home)
    try:
        try:
            hosts.make()
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("network namespaces cannot be made here")
        shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
        (home / "two.yaml").write_text(CONFIG)
        hosts.join(HEAD, "--head", "--port=6379")
        hosts.join(OTHER, f"--address={ADDRESS}")
        yield hosts
    finally:
        hosts.remove()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("where", [HEAD, OTHER])
def test_a_run_between_two_addresses(hosts: Hosts, where: str) -> None:
    """From the head, and from the other host; gloo goes over the cable, which is no host name's address."""
    name = f"from-{where}"
    hosts.cdt(where, "train", "two.yaml", "--address", ADDRESS, f"run.name={name}")
    run = hosts.home / "runs" / name
    metrics, events = (
        [json.loads(line) for line in (run / journal).read_text().splitlines()]
        for journal in ("metrics.jsonl", "events.jsonl")
    )
    assert metrics[-1]["step"] == 16
    assert {row["address"] for row in events if row["event"] == "node"} == {HEAD, OTHER}
    assert {path.name for path in (run / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}


def test_the_doctor_sees_both_and_that_they_reach_each_other(hosts: Hosts) -> None:
    said = hosts.cdt(OTHER, "doctor", str(hosts.home), "--address", ADDRESS)
    assert "ok   cluster: room for 2 workers: 2 CPUs on 2 nodes\n" in said
    assert f"ok   network: {HEAD} reaches {OTHER}\n" in said
    assert f"ok   network: {OTHER} reaches {HEAD}\n" in said
    assert not re.search("TODO .*(cluster|versions|storage|network)", said)


def test_the_dashboard_is_the_heads_own(hosts: Hosts) -> None:
    """It listens on the loopback address unless a user says otherwise."""
    url = f"http://{HEAD}:8265"
    said = hosts.cdt(OTHER, "jobs", "--address", url, status=2)
    assert said == f"cdt jobs: --address {url}: nothing answers there"
    hosts.cdt(HEAD, "jobs", "--address", "http://127.0.0.1:8265")
