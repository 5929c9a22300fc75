from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from cdt.cli.report import end_of_training, split_lines


def test_split_lines_count_classes() -> None:
    lines = split_lines(Path("data/x"), {"train": [1200, 7], "test": [3, 0]}, ["cat", "dog"], tars=1)
    assert lines == ["data/x: 1,210 samples in 1 shard", "  train: cat 1,200, dog 7", "  test: cat 3, dog 0"]
    assert split_lines(Path("x"), {"train": [2]}, ["cat"], tars=3)[0] == "x: 2 samples in 3 shards"


def printed(rows: list[dict[str, object]]) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=120).print(end_of_training(Path("runs/a"), rows))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_the_end_names_the_run_and_tensorboard() -> None:
    assert printed([]) == ["run: runs/a   TensorBoard: tensorboard --logdir runs/a/tb"]


def test_the_end_tells_what_could_not_be_used() -> None:
    bad = [{"kind": "wrong checksum", "shard": "train/000001.tar", "key": f"k{n}", "reason": "?"} for n in range(7)]
    bad += [{"kind": "missing shard", "shard": f"train/00000{n}.tar", "key": f"m{n}", "reason": "?"} for n in (2, 3, 4)]
    text = io.StringIO()
    Console(file=text, width=120).print(end_of_training(Path("runs/a"), [], bad))
    assert [line.rstrip() for line in text.getvalue().splitlines()] == [
        "10 samples were unusable; each was replaced by another sample of its class: wrong checksum 7, missing shard 3",
        "  train/000001.tar 7: k0, k1, k2, k3, k4, ...",
        "  train/000002.tar 1: m2",
        "  train/000003.tar 1: m3",
        "  events.jsonl names all",
        "run: runs/a   TensorBoard: tensorboard --logdir runs/a/tb",
    ]


def test_the_end_tells_each_constraint() -> None:
    row: dict[str, object] = {"constraint": "four", "lambda": 0.1, "loss": 3.25, "threshold": 3.0, "slack": -0.25}
    row |= {"satisfied": False, "count": 256, "share": None, "stderr": 0.1}
    met = row | {"constraint": "five", "slack": 0.5, "satisfied": True, "share": 0.12}
    unmeasured = row | {"constraint": "odd", "loss": None, "slack": None, "satisfied": None}
    empty = unmeasured | {"constraint": "rare", "count": 0}
    del empty["share"]  # the journal of an earlier version has none
    unknown = ["not", "measured"]
    head, *lines, where = printed([row, met, unmeasured, empty])
    assert head.split() == [
        "constraint",
        "lambda",
        "loss",
        "threshold",
        "slack",
        "satisfied",
        *["share", "of", "samples"],
    ]
    assert [line.split() for line in lines] == [
        ["four", "0.100", "3.250", "3.000", "-0.250", "no", *unknown],
        ["five", "0.100", "3.250", "3.000", "0.500", "yes", "0.120", "±", "0.012"],
        ["odd", "0.100", "-", "3.000", "-", *unknown, *unknown],
        ["rare", "0.100", "-", "3.000", "-", "no", "samples", *unknown],
    ]
    assert where.startswith("run: runs/a")
