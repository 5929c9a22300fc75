"""The short form of tools/chaos.py: three kills of one run, which ends as if there had been none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # five starts of Ray and of its workers
CHAOS = Path(__file__).parents[2] / "tools" / "chaos.py"
KINDS = "worker-kill,worker-stop,command-kill"


def test_a_run_survives_three_kills(tmp_path: Path) -> None:
    options = ["--runs", "1", "--kills", "3", "--only", KINDS, "--out", str(tmp_path / "chaos")]
    done = subprocess.run([sys.executable, str(CHAOS), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "chaos" / "chaos.json").read_text())
    assert told["failures"] == []
    assert sorted(kill["kind"] for kill in told["kills"]) == sorted(KINDS.split(","))
    assert all(kill["survived"] for kill in told["kills"])
    hung = [kill for kill in told["kills"] if kill["kind"] == "worker-stop"]
    assert all(kill["recovery_s"] > 15 for kill in hung), "it is waited for until run.hang_minutes are over"
    events = (tmp_path / "chaos/runs/run-0/events.jsonl").read_text().splitlines()
    told_of = [row["text"] for row in map(json.loads, events) if row["event"] == "restart"]
    assert any(
        text.startswith("no heartbeat for 15 s from worker ") and "(stopped); stacks" in text for text in told_of
    )
    assert list((tmp_path / "chaos/runs/run-0/stacks").glob("rank-*.txt"))
