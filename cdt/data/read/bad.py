"""Unusable samples: their kinds, places and number; a run continues while they are within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdt.data.format.damage import Kind
from cdt.data.format.index import Index
from cdt.errors import RunError


@dataclass(frozen=True)
class BadSample:
    """One unusable row of the index."""

    row: int
    kind: Kind
    reason: str


@dataclass
class Ledger:
    """Counts of samples that arrived and that were replaced, by stream; and every bad sample that was found, once.

    ``arrived`` and ``replaced`` [m + 1] are those of this process since the last ``take_counts``; ``bad`` are by row.
    """

    index: Index
    max_fraction: float
    arrived: np.ndarray
    replaced: np.ndarray
    setting: str = "data.max_bad_fraction"
    """What states ``max_fraction``, for the error message."""
    bad: dict[int, BadSample] = field(default_factory=dict)
    _new: list[BadSample] = field(default_factory=list)

    @classmethod
    def of(cls, index: Index, streams: int, max_fraction: float, setting: str = "data.max_bad_fraction") -> Ledger:
        return cls(index, max_fraction, np.zeros(streams, np.int64), np.zeros(streams, np.int64), setting)

    def count(self, streams: np.ndarray, bad: Mapping[int, BadSample]) -> None:
        """Counts a batch: the streams of its samples [b], and its bad samples by the places of their replacements."""
        replaced = np.bincount(streams[list(bad)], minlength=len(self.replaced))
        self.replaced += replaced
        self.arrived += np.bincount(streams, minlength=len(self.arrived)) - replaced
        self.add(bad.values())

    def add(self, found: Iterable[BadSample]) -> None:
        for sample in found:
            if sample.row not in self.bad:
                self.bad[sample.row] = sample
                self._new.append(sample)

    def check(self) -> None:
        """Raises RunError if more samples are bad than the budget allows."""
        if len(self.bad) > (allowed := int(self.max_fraction * self.index.count)):
            raise RunError(
                f"{self.summary()}. Allowed are {allowed} of {self.index.count:,} ({self.setting} "
                f"{self.max_fraction:g}); `cdt verify {self.index.root}` checks all shards"
            )

    def take_new(self) -> list[BadSample]:
        """The bad samples that were not reported yet."""
        new, self._new = self._new, []
        return new

    def take_counts(self) -> np.ndarray:
        """What arrived and what was replaced since the last call: [2, m + 1]."""
        counts = np.stack([self.arrived, self.replaced])
        self.arrived, self.replaced = np.zeros_like(self.arrived), np.zeros_like(self.replaced)
        return counts

    def shard_of(self, sample: BadSample) -> str:
        return self.index.shards[int(self.index.shard[sample.row])].name

    def kinds(self) -> dict[str, int]:
        """How many samples are bad, by kind, the most frequent first."""
        return dict(Counter(sample.kind for sample in self.bad.values()).most_common())

    def summary(self) -> str:
        """How many of each kind, and the three shards with the most of them and an example of each."""
        shards = Counter(self.shard_of(sample) for sample in self.bad.values())
        examples = {self.shard_of(sample): sample for sample in self.bad.values()}
        by_kind = ", ".join(f"{kind} {count}" for kind, count in self.kinds().items())
        worst = "; ".join(f"{name} ({count}, as {examples[name].reason})" for name, count in shards.most_common(3))
        return f"{len(self.bad)} samples are unusable ({by_kind}); most of them in {worst}"

    def describe(self, samples: Iterable[BadSample]) -> list[dict[str, Any]]:
        """For a journal: kind, shard, key, and why."""
        samples = list(samples)
        keys = self.index.keys([sample.row for sample in samples]) if samples else []
        return [
            {"kind": sample.kind, "shard": self.shard_of(sample), "key": key, "reason": sample.reason}
            for sample, key in zip(samples, keys, strict=True)
        ]
