"""Two Ray nodes with addresses of their own on this machine: runs across them, jobs, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small import CONFIG

from cdt.cluster import node
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed: no dashboard, no jobs")

SCRIPT = Path(__file__).parents[2] / "launch" / "local-two-nodes.sh"
BIN = Path(sys.executable).parent
PATIENCE_S = 400
ENDLESS = "train.dual_steps=1000000"


class Cluster:
    """``launch/local-two-nodes.sh`` at work, and commands that know of it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.said = home, home / "cluster"
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        self.environment = {**os.environ, "PYTHONWARNINGS": "", "COLUMNS": "200", "BIN": str(BIN), "PORT": str(port)}
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                ["bash", SCRIPT], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.wait_until(lambda: "Ctrl-C" in self.said.read_text())
        self.token = Path(re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", self.said.read_text())[0])
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """``cdt`` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "cdt", *arguments],
            cwd=self.home,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def cdt(self, *arguments: str, status: int = 0) -> str:
        """What ``cdt`` prints."""
        command = self.start(*arguments)
        out, err = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == status, out + err
        assert self.token.read_text() not in out + err
        return (out + err).strip()

    def run(self, name: str) -> Path:
        return self.home / "runs" / name

    @contextlib.contextmanager
    def another_node(self, *prefix: str) -> Iterator[subprocess.Popen[bytes]]:
        """One more node of one core; ``prefix`` is a command that starts it, as ``unshare``."""
        address = f"127.0.0.{3 + len(list(self.home.glob('node-*')))}"
        place = self.home / f"node-{address}"
        place.touch()
        options = [f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1", "--block"]
        options += [f"--temp-dir={self.token.parent / address}", "--dashboard-agent-listen-port=0"]
        with place.open("w") as out:
            node = subprocess.Popen(
                [*prefix, str(BIN / "ray"), "start", *options],
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            self.wait_until(lambda: "Ray runtime started" in place.read_text())
            yield node
        finally:
            lose(node.pid)
            node.wait()

    def second_node(self) -> int:
        """Of its process group."""
        started = [each for each in psutil.Process(self.process.pid).children() if "127.0.0.2" in str(each.cmdline())]
        return started[0].pid


def lose(node: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node, signal.SIGKILL)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows(run / "events.jsonl") if row["event"] == kind]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    (home / "two.yaml").write_text(CONFIG)
    (home / "statistics.py").write_text("raise ImportError('of the working directory')\n")
    cluster = Cluster(home, port=5000 + os.getpid() % 900 * 5)  # Ray keeps 10002 to 19999 for its workers
    nodes = psutil.Process(cluster.process.pid).children(recursive=True)
    yield cluster
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 143
    assert not cluster.token.parent.exists()
    _, left = psutil.wait_procs(nodes, timeout=60)
    assert not left


def test_a_run_across_both_nodes(cluster: Cluster) -> None:
    """Each node has room for one worker."""
    cluster.cdt("train", "two.yaml", "--address", cluster.address)
    run = cluster.run("two")
    assert rows(run / "metrics.jsonl")[-1]["step"] == 16
    told = events(run, "node")
    assert len({row["node"] for row in told}) == len({row["address"] for row in told}) == 2
    assert all(row["versions"]["ray"] and row["source"] for row in told)
    assert {path.name for path in (run / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}
    assert cluster.token.read_text() not in (run / "events.jsonl").read_text()


@pytest.mark.slow
def test_a_run_goes_on_across_both_nodes(cluster: Cluster) -> None:
    cluster.cdt("train", "two.yaml", "--address", cluster.address, "run.name=first")
    cluster.cdt("resume", "runs/first", "train.dual_steps=16", "--address", cluster.address)
    run = cluster.run("first")
    assert rows(run / "metrics.jsonl")[-1]["step"] == 24
    assert [row["text"] for row in events(run, "start")] == ["step 0 of 16 on 2 workers", "step 16 of 24 on 2 workers"]


def test_more_workers_than_there_is_room_for(cluster: Cluster) -> None:
    said = cluster.cdt("train", "two.yaml", "--address", cluster.address, "run.workers=8", "run.name=no", status=2)
    assert said == "cdt train: run.workers: asked for 8 workers × 1 CPU, the cluster has 2 CPUs on 2 nodes"
    assert not cluster.run("no").exists()


def test_a_wrong_token_is_told_in_one_line(cluster: Cluster) -> None:
    wrong = cluster.home / "wrong"
    wrong.write_text("wrong")
    right = cluster.environment["RAY_AUTH_TOKEN_PATH"]
    cluster.environment["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    try:
        for verb, address in (("train", cluster.address), ("jobs", cluster.dashboard)):
            said = cluster.cdt(verb, *["two.yaml"] * (verb == "train"), "--address", address, status=2)
            assert said.startswith(f"cdt {verb}: --address {address}: the cluster requires a token")
            assert said.count("\n") == 0
    finally:
        cluster.environment["RAY_AUTH_TOKEN_PATH"] = right
    assert wrong.stat().st_mode & 0o777 == 0o600


def test_the_doctor_asks_all_nodes(cluster: Cluster) -> None:
    said = cluster.cdt("doctor", str(cluster.home), "--address", cluster.address)
    assert "ok   cluster: room for 2 workers: 2 CPUs on 2 nodes\n" in said
    assert f"ok   storage: all nodes see {cluster.home}\n" in said
    assert len(re.findall(r"ok   network: \S+ reaches \S+\n", said)) == 2
    assert "TODO" not in said


@pytest.mark.slow
def test_a_job_is_sent_followed_listed_and_stopped(cluster: Cluster) -> None:
    places = [f"run.dir={cluster.home / 'runs'}", f"data.shards={cluster.home / 'data'}"]
    ship = cluster.home / "ship"
    ship.mkdir()
    (ship / "job.yaml").write_text(CONFIG)
    for name in ("statistics", "cdt"):
        (ship / f"{name}.py").write_text(f"raise ImportError({name!r} ' of the shipped directory')\n")
    where = ["--directory", "ship", "--address", cluster.dashboard]
    said = cluster.cdt("submit", "ship/job.yaml", "--follow", *where, *places)
    assert "run: " in said
    assert rows(cluster.run("job") / "metrics.jsonl")[-1]["step"] == 16
    said = cluster.cdt("submit", "ship/job.yaml", *where, *places, "run.name=long", ENDLESS)
    job = re.findall(r"^job (\S+):", said)[0]
    cluster.wait_until(lambda: bool(rows(cluster.run("long") / "metrics.jsonl")))
    listed = cluster.cdt("jobs", "--address", cluster.dashboard)
    assert re.search(rf"{job} +running +long", listed)
    assert re.search(r"succeeded +job", listed)
    cluster.cdt("stop", job, "--address", cluster.dashboard)
    assert events(cluster.run("long"), "left")
    assert list((cluster.run("long") / "checkpoints").iterdir())
    again = cluster.cdt("stop", job, "--address", cluster.dashboard, status=2)
    assert again.startswith(f"cdt stop: job {job} has ended already: ")


@pytest.mark.slow
def test_a_wheel_takes_the_place_of_the_nodes_own(cluster: Cluster) -> None:
    """Of a changed cdt, whose source the run records; no node installs anything."""
    source, ship = cluster.home / "source", cluster.home / "plain"
    root = SCRIPT.parents[1]
    shutil.copytree(root / "cdt", source / "cdt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    (source / "cdt" / "mark.py").write_text('"""Of this wheel alone."""\n')
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, f"--wheel-dir={cluster.home}", source], check=True, capture_output=True)
    (wheel,) = cluster.home.glob("*.whl")
    ship.mkdir()
    (ship / "wheel.yaml").write_text(CONFIG)
    (ship / ".gitignore").write_text("data/\n")  # which is a folder of the wheel's, too
    places = [f"run.dir={cluster.home / 'runs'}", f"data.shards={cluster.home / 'data'}"]
    where = ["--directory", str(ship), "--address", cluster.dashboard, "--wheel", str(wheel)]
    cluster.cdt("submit", str(ship / "wheel.yaml"), "--follow", *where, *places)
    assert {row["source"] for row in events(cluster.run("wheel"), "node")} == {node._digest_of(source / "cdt")}
    assert rows(cluster.run("wheel") / "metrics.jsonl")[-1]["step"] == 16


@pytest.mark.slow
def test_storage_that_a_node_does_not_see(cluster: Cluster) -> None:
    hidden = cluster.home / "hidden"
    hidden.mkdir()
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    with cluster.another_node(*hide):
        said = cluster.cdt("train", "two.yaml", "--address", cluster.address, f"run.dir={hidden}", status=2)
    assert said.startswith("cdt train: not all nodes see the same storage: run.dir: ")
    assert re.search(r"is \d+ bytes .* on \S+ \(\S+, \w+\), nothing on 127\.0\.0\.\d", said)
    assert not list(hidden.iterdir())


@pytest.mark.slow
def test_a_node_with_another_version_is_named(cluster: Cluster) -> None:
    other = cluster.home / "other" / "einops_is_not_checked" / "safetensors-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.0.1\n")
    path = os.pathsep.join(filter(None, [str(other.parent), os.environ.get("PYTHONPATH")]))
    with cluster.another_node("env", f"PYTHONPATH={path}"):
        said = cluster.cdt("train", "two.yaml", "--address", cluster.address, "run.name=no", status=2)
    assert re.match(r"cdt train: the nodes do not have the same versions: safetensors is \S+ on ", said)
    assert re.search(r"0\.0\.1 on 127\.0\.0\.\d", said)


@pytest.mark.slow
def test_the_loss_of_a_node_is_survived(cluster: Cluster) -> None:
    """The last test: the cluster's own second node is gone afterwards, and another one in its place."""
    run = cluster.run("bereft")
    command = cluster.start(
        "train", "two.yaml", "--address", cluster.address, "run.name=bereft", "train.dual_steps=400"
    )
    cluster.wait_until(lambda: len(rows(run / "metrics.jsonl")) > 10 or command.poll() is not None)
    lose(cluster.second_node())
    cluster.wait_until(lambda: bool(events(run, "waiting")) or command.poll() is not None)
    with cluster.another_node():
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, out + err
    assert len(events(run, "start")) == 2
    # Ray may learn of the worker's death before that of its node.
    assert re.search(r"(is lost, .*|worker \d died: .*); restarting from step-", events(run, "restart")[0]["text"])
    assert "asked for 2 workers × 1 CPU, the cluster has 1 CPU on 1 node" in events(run, "waiting")[0]["text"]
    assert rows(run / "metrics.jsonl")[-1]["step"] == 408
