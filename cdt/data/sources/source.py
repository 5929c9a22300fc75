"""The interface of every source of images: labelled records that can be read in any order, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cdt.data.format.header import Dtype
from cdt.data.format.problems import Problems


class Record(NamedTuple):
    """One labelled image [C, H, W], uint8 or float32; ``class_index`` is a position in the source's class names."""

    key: str
    image: np.ndarray
    class_index: int
    attributes: dict[str, int | float]


@dataclass(frozen=True, eq=False)
class Source:
    """N records of K classes. Everything but the pixels is known beforehand; pixels are read with their record."""

    class_names: list[str]
    keys: Sequence[str]
    """[N] unique names of letters, digits, - and _."""
    classes: np.ndarray
    """[N] integers, positions in ``class_names``."""
    shapes: np.ndarray
    """[N, 3] integers: C, H, W of every image."""
    dtype: Dtype
    read: Callable[[int], np.ndarray]
    """Position -> image [C, H, W]; raises BadDataError if it is unusable."""
    origin: dict[str, Any]
    """Where the records come from, as stored in index.json."""
    splits: np.ndarray
    """[N] str: the split that each record belongs to, "train" if the source has only one."""
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    """[N] integers or floats each."""
    paths: Sequence[str] | None = None
    """[N] names of the images in messages; the keys by default."""
    notes: list[str] = field(default_factory=list)
    """Sentences that the user should read: what was left out or converted."""
    problems: Problems = field(default_factory=Problems)
    """Samples that are unusable already by what is known beforehand; they are not among the N."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Record:
        attributes = {name: values[position].item() for name, values in self.attributes.items()}
        return Record(self.keys[position], self.read(position), int(self.classes[position]), attributes)

    def path(self, position: int) -> str:
        """The name in messages of the image at this position."""
        return (self.paths or self.keys)[position]
