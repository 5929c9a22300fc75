"""What is wrong with data, counted by kind; more of it than allowed is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdt.errors import InputError
from cdt.spelling import printable

LISTED = 5
"""How many problems of one kind are listed; the others are only counted."""
LONGEST = 1000
"""Characters of a place."""
MAX_BAD = 0.001
"""Share of the samples that may be unusable unless the user says otherwise."""
NOT_SAMPLES = ("empty shard", "file without extension", "hidden file")
"""Kinds of problems that cost no sample."""


@dataclass
class Problems:
    """Problems: their number by kind, and the places of the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Count a problem.

        Names in tars may contain control sequences of a terminal, which are not printed, and have a megabyte, of which
        the middle is left out.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= LISTED:
            self.places.setdefault(kind, []).append(_within_a_line(printable(place)))

    def update(self, other: Problems) -> None:
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            here = self.places.setdefault(kind, [])
            here += other.places[kind][: LISTED - len(here)]

    def judge(self, good: int, max_bad: float) -> list[str]:
        """One line for each kind. Raises InputError if more than ``max_bad`` of the samples are unusable, or all."""
        lines = [f"{kind}: {count}, as {'; '.join(self.places[kind][:3])}" for kind, count in self.counts.items()]
        if not good:
            raise InputError("\n  ".join(["no sample can be used:", *lines]))
        bad = sum(count for kind, count in self.counts.items() if kind not in NOT_SAMPLES)
        if bad > max_bad * (good + bad):
            first = f"{bad} problems beside {good:,} usable samples are more than --max-bad {max_bad:g} allows:"
            raise InputError("\n  ".join([first, *lines]))
        return lines


def _within_a_line(place: str) -> str:
    half = LONGEST // 2
    return place if len(place) <= LONGEST else f"{place[:half]} ... {place[-half:]}"


def check_max_bad(share: float) -> None:
    """Raises InputError unless it is a share."""
    if not 0 <= share <= 1:
        raise InputError(f"--max-bad: {share} is no share; expected 0 to 1")
