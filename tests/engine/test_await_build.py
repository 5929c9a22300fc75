"""The wait for another process that builds DeepSpeed's op."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from cdt.engine import await_build as module
from cdt.engine.await_build import OP, await_build
from cdt.errors import RunError


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(module, "POLL_S", 0.01)
    (tmp_path / OP).mkdir()
    return tmp_path / OP / "lock"


def test_it_is_the_folder_that_deepspeed_builds_in() -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert ShareMemCommBuilder.NAME == OP


def test_a_build_is_waited_for(lock: Path) -> None:
    await_build()
    lock.touch()
    threading.Timer(0.3, lock.unlink).start()
    began = time.monotonic()
    await_build()
    assert 0.2 < time.monotonic() - began < 5


def test_a_build_that_was_killed_is_not(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.touch()
    os.utime(lock, (0, time.time() - 3600))
    with pytest.raises(RunError, match=rf"building for 60 minutes, as {lock} says: .*: rm {lock}$"):
        await_build()
    monkeypatch.setattr(module, "BUILD_S", 0.1)
    os.utime(lock, (0, time.time() + 3600))  # by another machine's clock
    with pytest.raises(RunError, match="was killed"):
        await_build()
