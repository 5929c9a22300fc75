"""launch/slurm.sbatch under a real Slurm, with a real Ray and real runs: two hosts, on notice, and queued again."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from two_hosts import BIN, HEAD, OTHER, PATIENCE_S, Hosts, two_hosts

from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

DAEMONS = ("slurmctld", "slurmd", "munged")
WHERE = f"{os.environ['PATH']}:/usr/sbin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path=WHERE) for name in DAEMONS), reason="Slurm is not installed (slurm-wlm, munge)"
    ),
]
SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
CONFIG = """
run: {threads: 1, placement: spread}
data: {shards: SHARDS, epoch_samples: 64}
network: {kind: dit, patch: 4, width: 16, depth: 1, heads: 2}
constraints:
  four: {class: 4, min_frequency: 0.2}
probe: {draws: 16}
train: {batch_size: 16, warm_steps: 8, dual_steps: 392, checkpoint_steps: 200, lr: 0.002, log_steps: 4, grid_images: 0}
"""
SLURM = """
ClusterName=cdt
SlurmctldHost={host}({head})
SlurmctldPort=6817
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName=host1 NodeHostname={host} NodeAddr={head} Port=6818 CPUs=2 State=UNKNOWN
NodeName=host2 NodeHostname={host} NodeAddr={other} Port=6818 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=host1,host2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller and a daemon on the first host, another daemon on the second."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, home = hosts, hosts.home
        told = {"home": home, "host": socket.gethostname(), "head": HEAD, "other": OTHER}
        (home / "slurm.conf").write_text(SLURM.format(**told))
        (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # named, it is not looked for, and not used
        for name in ("state", "host1", "host2"):
            (home / name).mkdir()
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o400)
        hosts.environment |= {"SLURM_CONF": str(home / "slurm.conf"), "PATH": f"{BIN}:{WHERE}"}
        places = [
            f"--{what}={home}/munge.{what.split('-')[0]}" for what in ("key-file", "socket", "pid-file", "seed-file")
        ]
        munge = ["munged", "--foreground", "--force", f"--log-file={home}/munge.log", *places]
        self._start(HEAD, *munge)
        wait_until((home / "munge.socket").exists)
        self._start(HEAD, "slurmctld", "-D")
        self._start(HEAD, "slurmd", "-D", "-N", "host1")
        self._start(OTHER, "slurmd", "-D", "-N", "host2")
        wait_until(lambda: self.says("sinfo", "--noheader", "--format=%D %t") == "2 idle")

    def _start(self, host: str, *command: str) -> None:
        with (self.hosts.home / f"{host}-{command[0]}.log").open("w") as out:
            started = subprocess.Popen(
                self.hosts.on(host, *command),
                env=self.hosts.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.hosts.nodes.append(started)

    def says(self, *command: str) -> str:
        done = subprocess.run(
            self.hosts.on(HEAD, *command), env=self.hosts.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def logs(self) -> str:
        return "\n".join(f"{log.name}\n{log.read_text()[-4000:]}" for log in self.hosts.home.glob("*.log"))

    def state(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.says("scontrol", "show", "job", job)))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with two_hosts() as hosts:
        try:
            yield Slurm(hosts)
        except AssertionError:
            print(*(f"{log.name}\n{log.read_text()[-2000:]}" for log in hosts.home.glob("*.log")), sep="\n")
            raise


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_saves_on_notice_is_queued_again_and_goes_on(slurm: Slurm) -> None:
    home = slurm.hosts.home
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    (home / "my.yaml").write_text(CONFIG.replace("SHARDS", str(home / "data")))
    script = home / "slurm.sbatch"
    script.write_text(SCRIPT.read_text().replace(" --gpus-per-node=4", ""))  # as its reader would, without GPUs
    run, out = home / "runs" / "my", home / "job.log"
    slurm.hosts.environment |= {"BIN": str(BIN), "CONFIG": str(home / "my.yaml"), "RUN": str(run)}
    job = slurm.says("sbatch", "--parsable", f"--output={out}", f"--chdir={home}", str(script))

    def ended() -> bool:
        return slurm.state(job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")

    def told(kind: str) -> list[dict[str, Any]]:
        return [row for row in rows(run / "events.jsonl") if row["event"] == kind]

    wait_until(lambda: bool(rows(run / "metrics.jsonl")) or ended())
    slurm.says("scancel", "--batch", "--signal=TERM", job)
    wait_until(lambda: bool(told("left")) or ended())
    wait_until(lambda: slurm.state(job)["JobState"] == "PENDING" or ended())
    time.sleep(3)  # Slurm would wait for two minutes: it revokes the job's credentials to the second
    slurm.says("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(ended)
    assert slurm.state(job)["JobState"] == "COMPLETED", f"{slurm.state(job)}\n{slurm.logs()}"
    assert [row["step"] > 0 for row in told("start")] == [False, True]
    assert rows(run / "metrics.jsonl")[-1]["step"] == 400
    assert {row["address"] for row in told("node")} == {HEAD, OTHER}
    assert not list(run.parent.glob(".cdt-*")), "the token goes with the job"
    for name in slurm.hosts.names.values():
        left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
        commands = [Path(f"/proc/{process}/cmdline").read_bytes() for process in left]
        assert not [command for command in commands if b"ray" in command]
