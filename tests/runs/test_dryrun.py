"""`cdt train --dry-run` refuses what training refuses, and writes nothing."""

from __future__ import annotations

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
