"""Which samples a constraint speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cdt.errors import InputError
from cdt.spelling import SHOWN, did_you_mean, digits, place_of


@dataclass(frozen=True)
class Population:
    """The samples that constraints select from: labels [N] and attributes [N] of the training split, and replay."""

    classes: np.ndarray
    class_names: list[str]
    attributes: dict[str, np.ndarray]
    source: str
    """Where they come from, for error messages."""
    first: int = 0
    """The row of the first of them: the pretrained model's samples stand before them where they are the objective."""
    replay: range = range(0)
    """The rows of the pretrained model's samples."""

    @property
    def base(self) -> range:
        """The rows of the objective's samples: those that stand first."""
        return range(self.first or len(self.classes))

    @property
    def total(self) -> int:
        """All rows."""
        return len(self.classes) + len(self.replay)


class Samples(Protocol):
    """A part of a population."""

    @property
    def replayed(self) -> bool:
        """Whether they are samples of the pretrained model, so that it is needed."""
        ...

    def describe(self) -> str:
        """In words."""
        ...

    def rows(self, name: str, population: Population) -> np.ndarray:
        """Their rows [n], perhaps none. Raises InputError where constraint ``name`` selects by what is not there."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Samples of some classes (all: none is named) that have these values of attributes."""

    classes: tuple[str, ...]
    where: Mapping[str, float]
    replayed: bool = False

    def describe(self) -> str:
        named, others = self.classes[:SHOWN], len(self.classes[SHOWN:])
        parts = [f"class {' or '.join(named)}{f' or {others} others' * bool(others)}"] if self.classes else []
        parts += [f"{name} = {digits(value)}" for name, value in self.where.items()]
        return " and ".join(parts)

    def rows(self, name: str, population: Population) -> np.ndarray:
        """Raises InputError: unknown class or attribute."""
        chosen = np.ones(len(population.classes), dtype=bool)
        if self.classes:
            numbers = [_lookup(f"constraints.{name}.class", c, population.class_names) for c in self.classes]
            chosen &= np.isin(population.classes, numbers)
        for attribute, value in self.where.items():
            known = list(population.attributes)
            number = _lookup(f"constraints.{name}.where", attribute, known)
            chosen &= _equal(population.attributes[known[number]], value)
        return population.first + np.flatnonzero(chosen)


@dataclass(frozen=True)
class Replayed:
    """What the pretrained model generated."""

    replayed: bool = True

    def describe(self) -> str:
        return "what the pretrained model generates"

    def rows(self, name: str, population: Population) -> np.ndarray:
        return np.asarray(population.replay, dtype=np.int64)


def _equal(column: np.ndarray, value: float) -> np.ndarray:
    """Which values [N] are this one. Whole numbers are compared exactly, whatever the column's type.

    Fractions are compared in the type of the column: indexes of earlier versions keep them in single precision.
    """
    if not float(value).is_integer():
        return column == value
    return column == (int(value) if np.issubdtype(column.dtype, np.integer) else np.float64(value))


def _lookup(where: str, name: str, known: list[str]) -> int:
    if (place := place_of(name, known)) is not None:
        return place
    raise InputError(f"{where}: {name!r} is not in the data; {did_you_mean(name, known, 'known are')}")
