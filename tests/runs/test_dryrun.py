"""`cdt train --dry-run` refuses what training refuses, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.runs.dryrun import describe_plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_plan_refuses_what_training_refuses_and_writes_nothing(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = describe_plan(other(run={"fork": str(home / "whole")}))
    assert "warm start 0 steps, dual training 4 steps" in plan
    assert "starts from" in plan
    assert "every 2 training steps, 2 constraints" in plan
    with pytest.raises(InputError, match=r"continue it with `cdt resume .*/whole`"):
        describe_plan(tiny.config(home / "data", home / "whole"))
    assert list(tmp_path.iterdir()) == []


def test_the_plan_tries_to_write_and_to_read(home: Path, other: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert "reads        tried: one sample of each of 2 shards" in describe_plan(other())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^run\.dir: cannot write in .*/file: Not a directory$"):
        describe_plan(tiny.config(home / "data", tmp_path / "file" / "run"))
    damaged = Path(shutil.copytree(home / "data", tmp_path / "damaged"))
    for tar in (damaged / "train").iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(InputError, match=r"^data\.shards: no sample can be read: .*train/000000\.tar, byte "):
        describe_plan(tiny.config(damaged, tmp_path / "run"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "damaged"}
