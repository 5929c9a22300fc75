"""The audit of the data over two ranks: each bad sample is reported once, and all planned samples arrived."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_audit_scenarios import AUDITED, SPOILED, audited, spoiled_copy
from real_ranks import RealRanks

from cdt.data.format.index import Index
from cdt.engine.ranks import Ranks


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_two_ranks_draw_and_replace_as_one(real_ranks: RealRanks, alone: Ranks, digits: Index, tmp_path: Path) -> None:
    expected = audited(spoiled_copy(digits, tmp_path / "spoiled", SPOILED), alone, tmp_path)["within the budget"]
    for account in real_ranks(AUDITED):
        told = account["within the budget"]
        assert told.heard == "nothing"
        assert told.bad == expected.bad
        assert told.sums == pytest.approx(expected.sums, rel=1e-12)


def test_each_bad_sample_is_named_once(real_ranks: RealRanks, digits: Index) -> None:
    """By shard and key, by rank 0, for both."""
    named = [
        sample
        for event in events(real_ranks.folder / "within the budget, 2 ranks")
        if event["event"] == "bad_data"
        for sample in event["samples"]
    ]
    keys = digits.keys()
    rows = [keys.index(sample["key"]) for sample in named]
    assert sorted(rows) == real_ranks(AUDITED)[0]["within the budget"].bad
    assert set(rows) <= set(SPOILED)
    assert len(rows) > 5
    for sample, row in zip(named, rows, strict=True):
        assert sample["kind"] == "wrong checksum"
        assert sample["shard"] == digits.shards[int(digits.shard[row])].name


def test_at_the_end_of_each_epoch_promises_and_arrivals_are_compared(real_ranks: RealRanks) -> None:
    account = [event for event in events(real_ranks.folder / "within the budget, 2 ranks") if event["event"] == "data"]
    assert [event["step"] for event in account] == [5, 10]
    for event in account:
        assert sum(stream["promised"] for stream in event["streams"].values()) == 320
        for stream in event["streams"].values():
            assert stream["promised"] == stream["arrived"] + stream["replaced"]
    assert sum(stream["replaced"] for event in account for stream in event["streams"].values()) > 5
    assert account[1]["bad"] == {"wrong checksum": len(real_ranks(AUDITED)[0]["within the budget"].bad)}


def test_beyond_the_budget_all_ranks_stop_at_the_same_step(real_ranks: RealRanks) -> None:
    """With the same words, though no rank met so many itself."""
    first, second = (account["beyond the budget"] for account in real_ranks(AUDITED))
    assert len(first.sums) == len(second.sums) < 10
    for told in (first, second):
        assert re.match(r"\d+ samples are unusable \(wrong checksum \d+\); most of them in train/", told.heard)
        assert "data.max_bad_fraction 0.003" in told.heard


def test_a_sample_that_is_lost_on_one_rank_stops_all(real_ranks: RealRanks) -> None:
    for account in real_ranks(AUDITED):
        told = account["lost"]
        assert len(told.sums) == 5
        assert re.match(r"samples were lost by step 5: 320 samples were promised, 3\d\d arrived", told.heard)
