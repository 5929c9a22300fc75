"""Shards that are missing or damaged: refused at the start, counted and named while the run trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_runs import rows

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.errors import InputError, RunError
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_samples_that_cannot_be_read_end_the_run_in_one_line(home: Path, tmp_path: Path) -> None:
    """The sizes are right, so only reading finds it: byte offset, shard and remedy are named."""
    damaged = Path(shutil.copytree(home / "data", tmp_path / "damaged"))
    for tar in (damaged / "train").iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(RunError) as caught:
        train(tiny.config(damaged, tmp_path / "run"))
    first, *rest = str(caught.value).splitlines()
    assert "train/000000.tar, byte" in first
    assert f"`cdt verify {damaged}`" in first
    assert len(rest) == 1


def test_a_shard_that_is_missing_before_the_start_is_one_line(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "data", shard_mb=0.05)
    (tmp_path / "data/train/000002.tar").unlink()
    with pytest.raises(InputError, match=r"^[^\n]*does not match its index: train/000002.tar is missing$"):
        train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.9}))
    assert not (tmp_path / "run").exists()


def test_shards_that_disappear_while_a_run_reads_them_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named in events.jsonl and at the end; a resumed run goes on within the budget, and stops beyond it."""
    index = Index.load(tiny.write_shards(tmp_path / "data", shard_mb=0.05))
    gone = {info.name for info in index.shards[::2]}
    assert len(index.shards) > 10

    def remove(report: dict[str, Any]) -> None:
        if report["step"] == 2:
            for name in gone:
                (tmp_path / "data" / name).unlink(missing_ok=True)

    run = train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.9, "cache_mb": 0}), remove)
    bad = run.bad_samples()
    assert bad
    assert {sample["kind"] for sample in bad} == {"missing shard"}
    assert {sample["shard"] for sample in bad} <= gone
    assert {sample["key"] for sample in bad} <= set(index.keys())
    data = [event for event in rows(tmp_path / "run", "events.jsonl") if event["event"] == "data"]
    assert [event["step"] for event in data] == [2, 4, 6, 8]
    assert sum(stream["replaced"] for event in data for stream in event["streams"].values()) > 5
    assert data[-1]["bad"] == {"missing shard": len(bad)}
    assert main(["resume", str(tmp_path / "run"), "train.dual_steps=6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "samples were unusable; each was replaced by another sample of its class: missing shard" in said
    settings = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(settings.replace("max_bad_fraction: 0.9", "max_bad_fraction: 0.001"))
    with pytest.raises(InputError, match=r"does not match its index: train/000000\.tar is missing"):
        resume(tmp_path / "run", ["train.dual_steps=8"])


def test_too_many_bad_samples_end_a_run_with_the_worst_shards(tmp_path: Path) -> None:
    index = Index.load(tiny.write_shards(tmp_path / "data", shard_mb=0.05))
    for row in range(index.count):
        with (index.root / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 60)
            file.write(b"spoiled" if row % 3 else b"")
    with pytest.raises(RunError) as caught:
        train(tiny.config(tmp_path / "data", tmp_path / "run", data={"max_bad_fraction": 0.01}))
    said = str(caught.value).splitlines()[0]
    assert re.match(r"\d+ samples are unusable \(wrong checksum \d+\); most of them in train/", said)
    assert said.count("as the image's CRC-32") == 3
    assert "Traceback" not in str(caught.value)
