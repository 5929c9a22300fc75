from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdt.monitor.journal import append
from cdt.monitor.recorder import Recorder


def rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines, read without Python's own extensions nan and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def dual_row(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "period": 1,
        "step": 30,
        "constraint": name,
        "lambda": 0.25,
        "average": 0.2,
        "loss": 3.0,
        "stderr": 0.1,
        "count": 9,
    }
    return row | {"threshold": 3.5, "slack": 0.5, "satisfied": True, "share": 0.1} | changes


@pytest.fixture
def board(tmp_path: Path) -> EventAccumulator:
    """What TensorBoard reads of a short run in ``tmp_path``."""
    recorder = Recorder(tmp_path)
    for step in (10, 20):
        recorder.metrics(step, {"epoch": step / 16, "loss": 1.5 / step, "lr": 1e-3})
    recorder.event(20, "saved", "checkpoints/step-000000020", size=3)
    unmeasured = dual_row("young men", loss=None, slack=None, satisfied=None, share=None)
    recorder.dual(30, [dual_row("four"), unmeasured], np.array([0.25, 0.25, 0.5]))
    recorder.dual(
        60, [dual_row("four", satisfied=False), dual_row("old", **{"lambda": -0.1})], np.array([1.0, 0, -0.1])
    )
    recorder.scalars(30, {"training_loss/base": 4.0})
    recorder.grid(30, np.full((6, 9, 3), 200, dtype=np.uint8))
    recorder.close()
    accumulator = EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    return accumulator


def scalars(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_a_multiplier_that_draws_nothing_is_not_in_the_mixture(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.dual(30, [dual_row("four"), dual_row("smooth")], np.array([0.25]), undrawn=["smooth"])
    recorder.close()
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert scalars(board, "mixture/base") == [(30, pytest.approx(1 / 1.25))]
    assert "mixture/four" in board.Tags()["scalars"]
    assert "mixture/smooth" not in board.Tags()["scalars"]
    assert scalars(board, "constraints/smooth/lambda")


def test_json_lines(board: EventAccumulator, tmp_path: Path) -> None:
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 10, "epoch": 0.625, "loss": 0.15, "lr": 1e-3},
        {"step": 20, "epoch": 1.25, "loss": 0.075, "lr": 1e-3},
    ]
    [event] = rows(tmp_path / "events.jsonl")
    assert event.pop("time") > 1.7e9
    assert event == {"step": 20, "event": "saved", "text": "checkpoints/step-000000020", "size": 3}


def test_tensorboard_has_a_curve_of_everything(board: EventAccumulator) -> None:
    quantities = ("lambda", "average", "loss", "threshold", "slack", "satisfied", "share")
    assert set(board.Tags()["scalars"]) == {
        *(f"train/{name}" for name in ("epoch", "loss", "lr")),
        *(f"constraints/four/{name}" for name in quantities),
        *(f"constraints/old/{name}" for name in quantities),
        *(f"constraints/young men/{name}" for name in ("lambda", "average", "threshold")),
        *(f"mixture/{name}" for name in ("base", "four", "old", "young men")),
        "training_loss/base",
    }
    assert scalars(board, "train/lr") == [(10, pytest.approx(1e-3)), (20, pytest.approx(1e-3))]
    assert scalars(board, "constraints/four/lambda") == [(30, 0.25), (60, 0.25)]
    assert scalars(board, "constraints/four/satisfied") == [(30, 1.0), (60, 0.0)]
    assert scalars(board, "constraints/four/average") == [(30, pytest.approx(0.2)), (60, pytest.approx(0.2))]


def test_the_mixture_is_that_of_all_multipliers_and_has_no_negative_part(board: EventAccumulator) -> None:
    """Also of those that have no row."""
    assert scalars(board, "mixture/base") == [(30, 0.5), (60, 0.5)]
    assert scalars(board, "mixture/four") == [(30, 0.125), (60, 0.125)]
    assert scalars(board, "mixture/young men") == [(30, 0.125)]
    assert scalars(board, "mixture/old") == [(60, 0.0)]


def test_tensorboard_shows_grids_and_events(board: EventAccumulator) -> None:
    [image] = board.Images("samples/ema")
    assert (image.step, image.width, image.height) == (30, 9, 6)
    [text] = board.Tensors("events/saved/text_summary")
    assert text.tensor_proto.string_val == [b"checkpoints/step-000000020"]


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    append(tmp_path / "x.jsonl", {"loss": math.nan, "grad_norm": -math.inf, "lr": np.float64(0.5), "name": "ä"})
    assert rows(tmp_path / "x.jsonl") == [{"loss": None, "grad_norm": None, "lr": 0.5, "name": "ä"}]


def test_rows_are_appended_together_each_on_its_line(tmp_path: Path) -> None:
    append(tmp_path / "x.jsonl", {"a": 1}, {"a": math.inf})
    append(tmp_path / "x.jsonl")
    append(tmp_path / "x.jsonl", {"a": 3})
    assert rows(tmp_path / "x.jsonl") == [{"a": 1}, {"a": None}, {"a": 3}]


def test_a_second_recorder_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        recorder = Recorder(tmp_path)
        recorder.metrics(step, {"loss": 1.0})
        recorder.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]
    accumulator = EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    assert [step for step, _ in scalars(accumulator, "train/loss")] == [1, 2]


def test_what_tensorboards_thread_meets_is_not_printed_and_what_others_meet_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full disk is in tests/integration/test_disk.py."""
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    before = threading.excepthook
    recorder = Recorder(tmp_path)
    for module in ("tensorboard.summary.writer.event_file_writer", "mine"):
        kind = type("Failing", (threading.Thread,), {"__module__": module, "run": lambda self: 1 / 0})
        thread = kind()
        thread.start()
        thread.join()
    assert [type(each.thread).__module__ for each in told] == ["mine"]
    recorder.close()
    assert threading.excepthook == before
