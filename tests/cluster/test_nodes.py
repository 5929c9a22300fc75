"""What nodes answer, held against each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cdt.cluster import node
from cdt.cluster.doctor import machine
from cdt.cluster.nodes import Answer, check_storage, check_tools, check_versions, mark, version_problems
from cdt.cluster.session import cluster
from cdt.errors import InputError


def answer(address: str, **changed: Any) -> Answer:
    """This machine's facts under another address."""
    return Answer(address, {**node.facts(), "host": "h", **changed}, node_id=f"{address}-node")


def test_a_node_knows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("DS_SECRET_TOKEN", "x")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    facts = node.facts()
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert None not in facts["versions"].values()
    assert facts["environment"]["NCCL_DEBUG"] == "INFO"
    assert "x" not in facts["environment"].values()
    assert 0 < facts["memory"]["free"] <= facts["memory"]["all"]


def test_our_own_source_counts_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = node._digest_of(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert node._digest_of(tmp_path) != before


def test_what_stands_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert node.seen(str(tmp_path)) == "a directory"
    assert node.seen(str(tmp_path / "file")) == "3 bytes (sha256 ba7816bf8f01...)"
    assert node.seen(str(tmp_path / "none")) == "nothing"
    assert node.seen(str(tmp_path / "file" / "below")) == "an error: Not a directory"


def test_equal_nodes_have_no_problem() -> None:
    assert version_problems([answer("a"), answer("b")]) == []


def test_another_version_is_named_with_its_nodes() -> None:
    old = {**node.facts()["versions"], "torch": "1.0"}
    new = node.facts()["versions"]["torch"]
    with pytest.raises(InputError) as caught:
        check_versions([answer("a"), answer("b", versions=old), answer("c", versions={**old, "torch": None})])
    assert f"torch is {new} on a (h, a-node), 1.0 on b (h, b-node), missing on c (h, c-node);" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_many_nodes_are_not_all_named() -> None:
    (problem,) = version_problems([answer("a"), *(answer(f"b{k}", source="other") for k in range(5))])
    assert problem.startswith("the source of cdt is ")
    assert problem.endswith("b1 (h, b1-nod), b2 (h, b2-nod) and 2 more")


def test_storage_is_told_with_both_answers() -> None:
    with pytest.raises(InputError) as caught:
        check_storage(
            [answer("a", paths={"/x": "5 bytes"}), answer("b", paths={"/x": "nothing"})], {"/x": "data.shards"}
        )
    told = "not all nodes see the same storage: data.shards: /x is 5 bytes on a (h, a-node), nothing on b (h, b-node);"
    assert str(caught.value).startswith(told)


def test_tools_are_missed_only_where_they_are_needed() -> None:
    """DeepSpeed asks for ninja whenever it loads what it has built, and for a compiler to build it."""
    nothing, whole = {"ninja": None, "c++": None}, {"ninja": "/bin/ninja", "c++": "/usr/bin/c++"}
    check_tools([answer("a", tools=whole, op=False), answer("b", tools=nothing, op=False, gpus=["H100"])])
    check_tools([answer("a", tools={"ninja": "/bin/ninja", "c++": None}, op=True)])
    for built, missing in ((True, ["ninja"]), (False, ["ninja", "c++"])):
        with pytest.raises(InputError) as caught:
            check_tools([answer("a", tools=whole), answer("b", tools=nothing, op=built, gpus=[])])
        told = str(caught.value)
        assert [tool for tool in nothing if f"{tool} is missing on b (h, b-node): " in told] == missing


def test_a_mark_is_made_in_the_nearest_parent_and_goes(tmp_path: Path) -> None:
    with mark(tmp_path / "runs" / "one") as sign:
        assert sign.parent == tmp_path
        assert sign.is_file()
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tells_what_to_do() -> None:
    versions = {**node.facts()["versions"], "torch": "2.13.0+cpu"}
    poor = answer("a", gpus=["H100"], versions=versions, disk=1, memory={"free": 1, "all": 2}, op=False)
    told = [str(line) for line in machine(Answer(poor.address, poor.facts, "a", skew=-7))]
    assert told[0] == "TODO a (h, a): 1 × H100, and a PyTorch without CUDA: install PyTorch for CUDA"
    assert any(
        line.endswith("its clock is -7 s off: synchronise the clocks (chrony, systemd-timesyncd)") for line in told
    )
    assert sum(line.startswith("TODO") for line in told) == 4


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
