"""What a worker's process does before it trains: which network it uses, and where its output goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdt import filenames
from cdt.cluster import backend
from cdt.cluster.backend import Started, name_interface
from cdt.cluster.watchdog import Process


def test_the_interface_is_the_one_with_the_address_that_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "chosen")
    monkeypatch.setattr(backend.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    name_interface()
    chosen = os.environ.pop("GLOO_SOCKET_IFNAME")
    assert chosen == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "chosen"


def test_an_address_of_no_interface_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(backend.ray.util, "get_node_ip_address", lambda: "203.0.113.7")
    name_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_workers_are_expected_by_rank_as_soon_as_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[tuple[int, Process]] = []

    class Watcher:
        def expect(self, rank: int, process: Process) -> None:
            expected.append((rank, process))

    monkeypatch.setattr(backend, "process_of", lambda worker: ("node", worker))
    assert Started(Watcher()).before_init_train_context([11, 12]) == {}  # pyright: ignore[reportArgumentType]
    assert expected == [(0, Process("node", 11)), (1, Process("node", 12))]


def test_output_of_python_and_of_native_code_goes_to_the_log_of_the_rank(tmp_path: Path) -> None:
    """Appended: a worker that restarts keeps what the one before it wrote."""
    code = (
        "import os, sys; from pathlib import Path; from cdt.cluster.backend import log_to\n"
        f"log_to(Path({str(tmp_path)!r}), 1)\n"
        "print('python', flush=True); os.system('echo native; echo error >&2')"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / filenames.LOGS / "rank-1.log").read_text().splitlines() == ["python", "native", "error"] * 2


def test_the_store_of_torch_listens_on_loopback_alone() -> None:
    """Also that of the process group, which torch opens at the same port."""
    code = (
        "import os, psutil; from cdt.cluster.backend import open_store; import torch.distributed as dist\n"
        "address, port = open_store()\n"
        "os.environ |= {'MASTER_ADDR': address, 'MASTER_PORT': str(port), 'GLOO_SOCKET_IFNAME': 'lo'}\n"
        "dist.init_process_group('gloo', rank=0, world_size=1)\n"
        "listening = [each.laddr for each in psutil.Process().net_connections('inet') if each.status == 'LISTEN']\n"
        "print(*{place.ip for place in listening}, port in {place.port for place in listening})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["127.0.0.1", "True"]
