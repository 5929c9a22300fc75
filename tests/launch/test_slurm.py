"""launch/slurm.sbatch, with stand-ins for Slurm's commands and Ray's: what it starts, passes on, and leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"

STAND_INS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'a1\\na2\\na3\\n'; else echo "scontrol $*" >>"$LOG"; fi""",
    "srun": """
        echo "srun $*" >>"$LOG"
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@" """,
    "hostname": "echo 192.0.2.7 192.0.2.8",
    "ray": """
        if [ "$1" = status ]; then cat "$NODES" 2>/dev/null; exit; fi
        [ "${BROKEN:-}" ] && exit 1
        stat -c 'token %a' "$RAY_AUTH_TOKEN_PATH" >>"$LOG"
        case "$*" in *--head*) echo ' 1 node_head' ;; *) printf ' 1 node_b\\n 1 node_c\\n' ;; esac >>"$NODES"
        trap 'echo "ray is stopped" >>"$LOG"; exit 0' TERM
        while :; do sleep 0.05; done""",
    "cdt": """
        echo "cdt $*" >>"$LOG"
        [ "${STATUS:-}" ] && exit "$STATUS"
        trap 'echo "cdt saves" >>"$LOG"; exit 143' TERM
        while :; do sleep 0.05; done""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A job of three nodes with four GPUs each, whose commands write into ``log``."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, body in STAND_INS.items():
        (bin_ / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_ / name).chmod(0o755)
    (bin_ / "python").symlink_to(sys.executable)
    return {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "BIN": str(bin_),
        "LOG": str(tmp_path / "log"),
        "NODES": str(tmp_path / "nodes"),
        "CONFIG": "/shared/my.yaml",
        "RUN": str(tmp_path / "runs" / "my"),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "a[1-3]",
        "SLURM_GPUS_ON_NODE": "4",
    }


def log(environment: dict[str, str]) -> list[str]:
    path = Path(environment["LOG"])
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def nothing_stays(environment: dict[str, str]) -> Iterator[None]:
    """The token is gone, and no node runs any more."""
    yield
    assert not list(Path(environment["RUN"]).parent.glob(".cdt-*"))
    bin_ = environment["BIN"]
    left = subprocess.run(["pgrep", "-f", f"{bin_}/(ray|cdt|srun)"], capture_output=True, check=False)
    assert left.stdout == b""


@pytest.mark.usefixtures("nothing_stays")
def test_a_new_run_on_all_gpus(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", SCRIPT], env=environment | {"STATUS": "0"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = log(environment)
    runs = Path(environment["RUN"]).parent
    assert f"cdt train /shared/my.yaml --address 192.0.2.7:22345 run.dir={runs} run.name=my run.workers=12" in told
    head, others = [line for line in told if "ray start" in line]
    assert "--nodelist=a1" in head
    assert "--node-ip-address=192.0.2.7 --port=22345" in head
    assert "--nodes=2 --ntasks=2 --exclude=a1" in others
    assert "--address=192.0.2.7:22345" in others
    assert told.count("token 600") == told.count("ray is stopped") == 2


@pytest.mark.usefixtures("nothing_stays")
def test_a_run_that_is_there_goes_on_and_its_status_is_the_jobs(environment: dict[str, str]) -> None:
    run = Path(environment["RUN"])
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    done = subprocess.run(["bash", SCRIPT], env=environment | {"STATUS": "1"}, capture_output=True, check=False)
    assert done.returncode == 1
    assert f"cdt resume {run} --address 192.0.2.7:22345" in log(environment)
    assert not [line for line in log(environment) if "requeue" in line]


@pytest.mark.usefixtures("nothing_stays")
def test_on_notice_the_run_saves_and_the_job_is_queued_again(environment: dict[str, str]) -> None:
    job = subprocess.Popen(["bash", SCRIPT], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(line.startswith("cdt train") for line in log(environment)):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # for the stand-in's own trap
    job.send_signal(signal.SIGTERM)  # as --signal=B:TERM does
    _, said = job.communicate(timeout=60)
    assert job.returncode == 143, said
    told = log(environment)
    assert told.index("cdt saves") < told.index("ray is stopped") < told.index("scontrol requeue 12345")


@pytest.mark.usefixtures("nothing_stays")
def test_a_head_that_does_not_start_ends_the_job(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", SCRIPT], env=environment | {"BROKEN": "yes"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "a Ray node did not start\n")
    assert not [line for line in log(environment) if line.startswith("cdt")]
