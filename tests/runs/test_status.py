"""What `cdt status` says of a run that is complete, running, interrupted, or was recomputed in part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import rows, terminating

from cdt.config import RunConfig
from cdt.errors import Terminated
from cdt.runs.start import train
from cdt.runs.status import describe_status

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_status_of_a_run_that_is_done(home: Path) -> None:
    first, second, third, fourth, fifth = describe_status(home / "whole")
    assert first == f"{home / 'whole'}: complete"
    assert second.startswith("  step 8 of 8, loss ")
    assert third.startswith("  last checkpoint: step 8, ")
    assert third.endswith("; 4 are kept")
    assert fourth == "  started 1 time, 0 of them after a worker had died"
    assert fifth.endswith("end: 8 steps done")


def test_the_status_tells_what_was_done_again_and_whether_it_came_out_as_before(whole: Path) -> None:
    journal = whole / "dual.jsonl"
    again = rows(whole, "dual.jsonl")[-2:]
    for nudge, told in ((0.0, "identical results"), (1e-12, "different results at 1, first at step 8")):
        with journal.open("a") as file:
            file.writelines(
                json.dumps(row | {"lambda": row["lambda"] + nudge * (1 + row["lambda"])}) + "\n" for row in again
            )
        assert f"  1 dual step was recomputed after an interruption, with {told}" in list(describe_status(whole))


def test_the_status_of_a_run_under_way_and_of_one_that_was_left(other: Callable[..., RunConfig]) -> None:
    config = other()
    seen: list[str] = []
    ask = terminating(6)

    def look(report: dict[str, Any]) -> None:
        if not seen:
            thread = threading.Thread(target=lambda: seen.extend(describe_status(config.directory)))
            thread.start()
            thread.join()
        ask(report)

    with pytest.raises(Terminated):
        train(config, look)
    assert seen[0].startswith(f"{config.directory}: running, process {os.getpid()} on ")
    assert seen[2] == "  no checkpoint yet"
    after = list(describe_status(config.directory))
    assert after[0] == f"{config.directory}: not running; continue with `cdt resume {config.directory}`"
    assert after[1].startswith("  step 6 of 8, loss ")


HEAVY = ("scipy", "torchmetrics", "transformers", "diffusers", "ray", "deepspeed", "webdataset", "peft")


def test_the_status_imports_nothing_that_only_computes() -> None:
    """It is asked often, and each of these takes as long as all of the rest."""
    code = f"import sys, cdt.runs.status; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.json", "{", "data.json is damaged: Invalid JSON"),
        ("data.json", None, "data.json is damaged: No such file or directory"),
        ("data.json", '{"split": 1}', "data.json is damaged: split: Input should be a valid string"),
        ("calibration.json", "[1]", "calibration.json is damaged: 0: Input should be an object"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str | None, told: str, whole: Path) -> None:
    if content is None:
        (whole / name).unlink()
    else:
        (whole / name).write_text(content)
    (line,) = [line for line in describe_status(whole) if "is damaged" in line]
    assert line.startswith(f"  {told}")
