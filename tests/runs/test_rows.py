"""Rows of journals: what is no row is left out and counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdt.errors import InputError
from cdt.runs.rows import read_calibration, read_journal

EVENT = '{"time": 1.5, "step": 3, "event": "start", "text": "", "more": [1]}'
DUAL = (
    '{"period": 1, "step": 8, "constraint": "a", "lambda": 0.5, "loss": null, "stderr": null, "count": 8, '
    '"threshold": 1.0, "slack": null, "satisfied": null}'
)


def test_what_is_no_row_is_counted(tmp_path: Path) -> None:
    lines = [
        EVENT,
        "null",
        "5",
        "[" * 10_000,
        EVENT.replace("1.5", "1e99"),
        EVENT.replace("3", "-3"),
        "\udcff",
        "",
        EVENT,
    ]
    (tmp_path / "events.jsonl").write_bytes("\n".join([*lines, EVENT[:20]]).encode(errors="surrogateescape"))
    found = read_journal(tmp_path, "events.jsonl")
    assert [row["step"] for row in found.rows] == [3, 3]
    assert found.rows[0]["more"] == [1]
    assert found.unusable == 7  # the last line may be under way


def test_what_was_not_measured_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "dual.jsonl").write_text(f"{DUAL}\n{DUAL.replace('0.5', 'null')}\n{DUAL}")
    found = read_journal(tmp_path, "dual.jsonl")
    assert [row["lambda"] for row in found.rows] == [0.5, 0.5]
    assert found.unusable == 1
    assert read_journal(tmp_path, "metrics.jsonl") == ([], 0)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics\.jsonl: it is not a regular file"):
        read_journal(tmp_path, "metrics.jsonl")
    assert read_calibration(tmp_path) == []
    (tmp_path / "calibration.json").write_text('[{"constraint": "a", "window": "wide"}]')
    with pytest.raises(InputError, match=r"calibration\.json cannot be read: 0\.window"):
        read_calibration(tmp_path)
