"""What a node knows of itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cdt.cluster import node


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
