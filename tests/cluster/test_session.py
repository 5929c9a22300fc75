"""Connecting to a Ray cluster, and what it has room for."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

import pytest

from cdt.cluster import session
from cdt.cluster.session import Slots, cluster, cluster_slots, missing_slots
from cdt.errors import InputError


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ray://head:10001", "give HOST:PORT of the cluster's head (its port is 6379), or auto"),
        ("head", "give HOST:PORT"),
        ("127.0.0.1:1", "nothing answers there: "),
        ("127.0.0.1:99999", "nothing answers there: "),
    ],
)
def test_an_address_that_is_none(address: str, told: str) -> None:
    with pytest.raises(InputError) as caught, cluster(address):
        raise AssertionError
    assert str(caught.value).startswith(f"--address {address}: {told}")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Resources of the nodes of a cluster, to be filled in. All are free."""
    nodes: list[dict[str, float]] = []
    monkeypatch.setattr(session, "alive", lambda: [{"Resources": resources} for resources in nodes])
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    return nodes


def test_workers_run_on_gpus_if_any_node_has_one(nodes: list[dict[str, float]]) -> None:
    nodes.extend([{"CPU": 8, "GPU": 2}, {"CPU": 8}])
    assert cluster_slots() == Slots("GPU", 2, 1)
    assert cluster_slots("CPU") == Slots("CPU", 16, 2)
    assert str(cluster_slots("CPU")) == "16 CPUs on 2 nodes"
    nodes.pop(0)
    assert str(cluster_slots()) == "8 CPUs on 1 node"


def test_what_says_how_ranks_communicate_is_passed_on_to_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a submitted job passes on, it has on all nodes; Ray refuses a variable that is passed on twice."""
    for name in [name for name in os.environ if name.startswith(session.COMMUNICATION)]:
        monkeypatch.delenv(name)
    for name in ("NCCL_DEBUG", "UCX_TLS", "SECRET_NCCL_"):
        monkeypatch.setenv(name, "1")
    assert session.passed_on() == {"NCCL_DEBUG": "1", "UCX_TLS": "1"}
    job = {"runtime_env": {"env_vars": {"UCX_TLS": "1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert session.passed_on() == {"NCCL_DEBUG": "1"}


def test_missing_slots_are_counted_and_busy_ones_are_distinguished(nodes: list[dict[str, float]]) -> None:
    nodes.append({"CPU": 4})
    assert missing_slots(2, "CPU", patience_s=0) is None
    busy = "asked for 3 workers × 1 CPU, the cluster has 4 CPUs on 1 node, 2 of them free"
    assert missing_slots(3, "CPU", patience_s=0) == busy
    assert missing_slots(5, "CPU", patience_s=0) == "asked for 5 workers × 1 CPU, the cluster has 4 CPUs on 1 node"


def test_the_wait_for_slots_ends_when_they_are_there_or_on_notice(
    nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.append({"CPU": 4})
    leaving = threading.Event()
    leaving.set()
    assert missing_slots(4, "CPU", patience_s=600, leaving=leaving) is not None
    free = iter([2.0, 4.0])
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": next(free)})
    assert missing_slots(4, "CPU", patience_s=600) is None


def test_a_temporary_directory_that_is_too_long_for_sockets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    for place, used in ((tmp_path, str(tmp_path)), (long, "/tmp")):
        monkeypatch.setenv("TMPDIR", str(place))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(session, "LONGEST_TMPDIR", len(str(tmp_path)))
        session.set_environment()
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == used
