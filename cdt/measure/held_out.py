"""Samples that are not trained on: where constraints are measured, if they have enough of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cdt.constraints import Constraint, Population
from cdt.data.config import DataConfig
from cdt.data.format.header import read_header
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader
from cdt.errors import InputError
from cdt.measure.config import ProbeConfig

ENOUGH = 32
"""Held-out samples of a constraint from which on they are taken instead of training samples."""
AUTO = ("validation", "valid", "val")
"""Splits that are made for this purpose. A test split is not: name it in ``probe.split`` to use it."""


@dataclass(frozen=True)
class HeldOut:
    """The samples of another split, for each constraint that has enough there."""

    split: str
    reader: ImageReader
    rows: dict[str, np.ndarray]

    def describe(self, names: Iterable[str]) -> str:
        """On which samples the losses of these constraints are measured, in words."""
        names = list(names)
        places = {
            f"on samples of split {self.split} for ": [name for name in names if name in self.rows],
            "on training samples for ": [name for name in names if name not in self.rows],
        }
        found = "; ".join(place + ", ".join(chosen) for place, chosen in places.items() if chosen)
        return f"losses are measured {found}"


def held_out_split(probe: ProbeConfig, index: Index) -> str | None:
    """The split that ``probe.split`` means. Raises InputError: not there, or trained on."""
    split = probe.split
    if split == index.split:
        raise InputError(f"probe.split: {split} is the split that is trained on; name another, or null")
    if split is None:
        return None
    there = read_header(index.root).splits
    if split == "auto":
        return next((name for name in AUTO if name in there and name != index.split), None)
    if split not in there:
        raise InputError(f"probe.split: {index.root} has no split {split!r}; it has {', '.join(there)}")
    return split


def held_out(
    data: DataConfig, probe: ProbeConfig, index: Index, constraints: Mapping[str, Constraint]
) -> HeldOut | None:
    """None where ``probe.split`` means no split."""
    split = held_out_split(probe, index)
    if split is None:
        return None
    other = Index.load(data.shards, split, data.allow_pipe)
    population = Population(other.classes, other.class_names, other.attributes, f"{other.root} ({split})")
    rows = {name: constraint.samples.rows(name, population) for name, constraint in constraints.items()}
    enough = {name: found for name, found in rows.items() if len(found) >= ENOUGH}
    return HeldOut(split, ImageReader(other, data.cache_mb), enough)
