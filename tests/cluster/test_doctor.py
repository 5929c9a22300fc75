"""What `cdt doctor` finds, and the remedy that it names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from node_answers import answer

from cdt.cluster import doctor, node
from cdt.cluster.doctor import Line, examine, machine, token
from cdt.cluster.nodes import Answer
from cdt.errors import InputError


def test_the_doctor_tells_what_to_do() -> None:
    versions = {**node.facts()["versions"], "torch": "2.13.0+cpu"}
    poor = answer("a", gpus=["H100"], versions=versions, disk=1, memory={"free": 1, "all": 2}, op=False)
    told = [str(line) for line in machine(Answer(poor.address, poor.facts, "a", skew=-7))]
    assert told[0] == "TODO a (h, a): 1 × H100, and a PyTorch without CUDA: install PyTorch for CUDA"
    assert any(
        line.endswith("its clock is -7 s off: synchronise the clocks (chrony, systemd-timesyncd)") for line in told
    )
    assert sum(line.startswith("TODO") for line in told) == 4


def test_a_check_is_ok_or_names_its_remedy() -> None:
    assert str(Line("ports", "6379 is free")) == "ok   ports: 6379 is free"
    assert str(Line("ports", "6379 is taken", "stop it")) == "TODO ports: 6379 is taken: stop it"


def test_a_gpu_node_needs_no_compiler() -> None:
    versions = {**node.facts()["versions"], "torch": "2.13.0"}
    found = [str(line) for line in machine(answer("a", gpus=["H100", "H100"], versions=versions, tools={}))]
    assert found[0] == "ok   a (h, a-node): 2 × H100: nccl"
    assert not any("DeepSpeed" in line for line in found[2:])


@pytest.mark.parametrize(
    ("tools", "built", "expected"),
    [
        ({"ninja": None, "c++": None}, False, "cannot load its communication for CPUs without ninja, c++"),
        ({"ninja": "/n", "c++": "/c"}, False, "communication for CPUs is not built: the first run does"),
        ({"ninja": "/n", "c++": None}, True, "communication for CPUs is built"),
    ],
)
def test_what_a_node_without_gpus_lacks(tools: dict[str, str | None], built: bool, expected: str) -> None:
    lines = [str(line) for line in machine(answer("a", gpus=[], tools=tools, op=built))]
    assert sum(expected in line for line in lines) == 1


def test_the_lock_of_a_build_that_was_killed() -> None:
    tools = {"ninja": "/n", "c++": "/c"}
    lines = [str(line) for line in machine(answer("a", gpus=[], tools=tools, op=True, lock=("/x/lock", 1e4)))]
    told = "a build of DeepSpeed's communication for CPUs was killed; every later one waits for it: rm /x/lock"
    assert f"TODO a (h, a-node): {told}" in lines


def test_tokens_that_are_off_or_readable_by_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for mode, expected in ((0o644, f"TODO token: others can read {file}: chmod 600 {file}"), (0o600, "ok   token: ")):
        file.chmod(mode)
        (line,) = token()
        assert str(line).startswith(expected)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (line,) = token()
    assert str(line).startswith("TODO token: RAY_AUTH_MODE switches tokens off: unset it")


def test_on_one_machine_it_checks_ports_and_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "the head"})
        lines = [str(line) for line in examine(None, [tmp_path / "runs", tmp_path / "file" / "runs"])]
    expected = f"TODO ports: {port} (the head) is taken: stop the process that listens there, or give the head another"
    assert sum(line.startswith(expected) for line in lines) == 1
    assert sum(line.startswith(f"ok   storage: {tmp_path / 'runs'} can be written on ") for line in lines) == 1
    unusable = f"TODO storage: cannot write in {tmp_path / 'file'}: Not a directory"
    assert sum(line.startswith(unusable) for line in lines) == 1


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "x"):
        with pytest.raises(InputError, match=f"^{path}: its links lead in a circle$"):
            examine(None, [path])
    with pytest.raises(InputError, match="no file can have this name"):
        examine(None, [Path("a\0b")])
