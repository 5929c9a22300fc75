"""The messages of the command line at the end of a command."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cdt.spelling import printable


def split_lines(root: Path, splits: Mapping[str, Sequence[int]], class_names: Sequence[str], tars: int) -> list[str]:
    """How many samples of each class each split of a shard directory has."""
    total = sum(sum(counts) for counts in splits.values())
    lines = [f"{root}: {total:,} samples in {tars} shard{'s' * (tars != 1)}"]
    for split, counts in splits.items():
        named = zip(class_names, counts, strict=True)
        lines.append(f"  {split}: " + ", ".join(f"{name} {count:,}" for name, count in named))
    return lines


def bad_data_lines(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many samples were unusable, by kind, and the three shards with the most of them and some keys."""
    if not samples:
        return []
    kinds = Counter(sample["kind"] for sample in samples)
    lines = [
        f"{len(samples):,} samples were unusable; each was replaced by another sample of its class: "
        + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    ]
    for shard, count in Counter(sample["shard"] for sample in samples).most_common(3):
        keys = [sample["key"] for sample in samples if sample["shard"] == shard]
        lines.append(f"  {shard} {count:,}: {', '.join(keys[:5])}{', ...' * (count > 5)}")
    return [*lines, "  events.jsonl names all"]


def end_of_training(directory: Path, rows: Sequence[Mapping[str, Any]], bad: Sequence[Mapping[str, Any]] = ()) -> Group:
    """The constraints after the last dual step, the unusable samples, and the paths of the run."""
    lines = [*bad_data_lines(bad), f"run: {directory}   TensorBoard: tensorboard --logdir {directory / 'tb'}"]
    where = Text("\n".join(map(printable, lines)), overflow="fold")
    if not rows:
        return Group(where)
    table = Table(box=None, pad_edge=False)
    table.add_column("constraint")
    for name in ("lambda", "loss", "threshold", "slack"):
        table.add_column(name, justify="right")
    table.add_column("satisfied")
    table.add_column("share of samples")
    for row in rows:
        numbers = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("loss", "threshold", "slack"))
        unknown = "not measured" if row["count"] else "no samples"
        satisfied = {True: "[green]yes", False: "[red]no", None: unknown}[row["satisfied"]]
        table.add_row(row["constraint"], f"{row['lambda']:.3f}", *numbers, satisfied, _share(row))
    return Group(table, where)


def jobs_table(rows: Sequence[Mapping[str, Any]]) -> Table | Text:
    """Jobs of a cluster: name, status, run, when it started (seconds since 1970), how long it took."""
    if not rows:
        return Text("no jobs")
    table = Table("job", "status", "run", "started", "took", box=None, pad_edge=False)
    for row in rows:
        started, ended = row["started"], row["ended"]
        when = "-" if started is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
        took = "-" if started is None else f"{((ended or time.time()) - started) / 60:,.1f} min"
        table.add_row(*(Text(row[name], overflow="fold") for name in ("name", "status", "run")), when, took)
    return table


def _share(row: Mapping[str, Any]) -> str:
    """The measured share with its standard error; a satisfied loss says nothing certain about samples."""
    share = row.get("share")
    return "not measured" if share is None else f"{share:.3f} ± {share * (row['stderr'] or 0.0):.3f}"
