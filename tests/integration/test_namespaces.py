"""Runs between two network namespaces, each with an address of its own: what binds to loopback is not reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from small import CONFIG
from two_hosts import HEAD, OTHER, Hosts, two_hosts

from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

pytestmark = pytest.mark.slow
pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed: no dashboard")

ADDRESS = f"{HEAD}:6379"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        shard(SOURCES["digits"](), hosts.home / "data", keep={"4": 0.1})
        (hosts.home / "two.yaml").write_text(CONFIG)
        hosts.join(HEAD, "--head", "--port=6379")
        hosts.join(OTHER, f"--address={ADDRESS}")
        yield hosts


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
