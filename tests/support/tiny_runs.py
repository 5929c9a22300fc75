"""Helpers for tests that train the smallest run: its journals, its checkpoints, and how to interrupt it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cdt.checkpoints.checkpoint import complete_checkpoints, read_weights
from cdt.runs.run import Run


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(run / "checkpoints")]


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last checkpoints agree bit by bit, in the EMA and the raw weights."""
    pairs = [[read_weights(Run(run).checkpoint, raw) for run in (one, other)] for raw in (False, True)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a | b)


def flip(file: Path) -> None:
    """One bit in the middle; the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def sealed_again(checkpoint: Path) -> None:
    """The manifest says what is there now, as somebody would do who wants it to be taken."""
    path = checkpoint / "manifest.json"
    tree = json.loads(path.read_text())
    for name in list(tree["files"]):
        file = checkpoint / name
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            tree["files"][name] = {"bytes": file.stat().st_size, "sha256": digest}
        else:
            del tree["files"][name]
    path.write_text(json.dumps(tree))


def interrupting(step: int, with_error: BaseException) -> Callable[[dict[str, Any]], None]:
    def on_progress(report: dict[str, Any]) -> None:
        if report["step"] >= step:
            raise with_error

    return on_progress


def terminating(step: int) -> Callable[[dict[str, Any]], None]:
    def on_progress(report: dict[str, Any]) -> None:
        if report["step"] == step and "loss" in report:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress
