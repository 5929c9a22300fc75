"""What a node knows of itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from cdt.cluster import node
from cdt.engine.await_build import OP


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


def test_gpus_are_found_without_their_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "DRIVER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node._gpus() == []
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "information").write_text("Model: \t NVIDIA H100\nIRQ:   16\n")
    assert node._gpus() == ["NVIDIA H100", "NVIDIA H100"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 580'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert node._gpus() == ["NVIDIA H100, 81559 MiB, 580"]


def test_what_torch_was_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node._cuda() == torch.version.cuda
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '12.9'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    assert node._cuda() == "12.9"


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


def test_a_lock_of_a_build_has_an_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert node._lock() is None
    lock = tmp_path / OP / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (0, time.time() - 100))
    found = node._lock()
    assert found is not None
    assert found[0] == str(lock)
    assert found[1] == pytest.approx(100, abs=10)
