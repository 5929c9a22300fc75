"""What nodes answer, held against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_answers import answer

from cdt.cluster import node
from cdt.cluster.nodes import check_cuda, check_storage, check_tools, check_versions, mark, version_problems
from cdt.errors import InputError


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


def test_gpus_that_torch_cannot_use_are_named() -> None:
    """Ray would place workers on them. Training on their machine's cores needs the tools of other machines."""
    check_cuda([answer("a", gpus=["H100"]), answer("b", gpus=[], cuda=None)])
    blind = answer("b", gpus=["H100"], cuda=None, tools={"ninja": None, "c++": None})
    with pytest.raises(InputError, match=r"torch is built for CPUs on b \(h, b-node\), which has GPUs: install "):
        check_cuda([answer("a", gpus=["H100"]), blind])
    with pytest.raises(InputError, match="ninja is missing on b"):
        check_tools([blind])


def test_a_build_that_was_killed_is_named_before_a_run_waits_for_it() -> None:
    tools = {"ninja": "/bin/ninja", "c++": "/usr/bin/c++"}
    check_tools(
        [answer("a", tools=tools, gpus=[], lock=("/x/lock", 60.0)), answer("b", gpus=["H100"], lock=("/x", 1e9))]
    )
    with pytest.raises(InputError, match=r"a build was killed on b \(h, b-node\) and has left a lock: rm /x/lock$"):
        check_tools([answer("a", tools=tools, gpus=[]), answer("b", tools=tools, gpus=[], lock=("/x/lock", 1e4))])


def test_a_mark_is_made_in_the_nearest_parent_and_goes(tmp_path: Path) -> None:
    with mark(tmp_path / "runs" / "one") as sign:
        assert sign.parent == tmp_path
        assert sign.is_file()
    assert list(tmp_path.iterdir()) == []
