"""What a requirement is: which samples it speaks of, on which window of log-SNR, and its budget in the user's units."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, FiniteFloat, field_validator, model_validator

from cdt.errors import InputError
from cdt.schema import Config


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


@dataclass(frozen=True)
class Calibration:
    """What the warm model says of one constraint when thresholds are set."""

    loss: float
    """loss_i under the EMA weights, on the probe's fixed draws and window, nats."""
    share: float
    """rho_i: the share of the constraint's samples in what the warm model generates, or in the data if unmeasured."""
    window: float
    """Upper end of the log-SNR window that ``loss`` was taken on."""
    reference: float | None = None
    """loss_i of the reference model, nats, on the same draws; None where the kind has no reference."""
    share_measured: bool = False
    """Whether ``share`` was measured on samples of the warm model."""


class Constraint(Config):
    """``loss_i <= c_i`` on the samples of some classes, groups of classes or attributes.

    A kind of budget is one subclass in a file of its own, and its name in ``cdt.constraints.KINDS``.
    """

    budget: ClassVar[str]
    """The key that users write, which names the kind."""
    rule: ClassVar[str]
    """The update rule that suits this budget's units, a key of ``cdt.dual.RULES``."""
    kp: ClassVar[float] = 0.0
    """The proportional term that suits the statistic: more where it answers late."""
    equal: ClassVar[bool] = False
    """Whether the budget is to be met exactly, not only kept."""
    generated: ClassVar[bool] = False
    """Whether the statistic is measured on generated samples."""

    classes: tuple[str, ...] = Field(default=(), validation_alias="class", serialization_alias="class")
    """A class by name, or a list of classes that are one group."""
    where: dict[str, float] = Field(default_factory=dict)
    """Attributes and the values that they must have."""
    window: Literal["auto"] | FiniteFloat | None = None
    """Upper end of the log-SNR window of the loss; ``null``: the full range; ``auto``: where classes separate."""

    @field_validator("classes", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> tuple[str, ...]:
        several = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(name, str | int) for name in several):
            raise ValueError("a class name or a list of class names is needed")
        return tuple(str(name) for name in several)

    @model_validator(mode="after")
    def _selects_something(self) -> Constraint:
        if not self.classes and not self.where:
            raise ValueError("says nothing about which samples: give `class: NAME`, or `where: {ATTRIBUTE: VALUE}`")
        return self

    @abstractmethod
    def threshold(self, calibration: Calibration) -> float:
        """c_i in nats."""

    @abstractmethod
    def describe(self) -> str:
        """The requirement in words, for tables and model cards."""

    @property
    def budget_path(self) -> str:
        """The setting that states the budget: what may change while a run is under way."""
        return self.budget

    @property
    def budget_in_nats(self) -> float | None:
        """b_i, where the kind states one; for a share F it is ``log(1 / F)``."""
        return None if self.share is None else math.log(1 / self.share)

    @property
    def eta(self) -> float | None:
        """The step size that suits statistic and budget; None: the rule's own."""
        return None

    @property
    def share(self) -> float | None:
        """F_i, where the kind asks for a share of the generated samples."""
        return None

    @property
    def judge(self) -> Path | None:
        """The classifier that measures its share of samples, where it has one."""
        return None

    @property
    def of_teacher(self) -> bool:
        """Whether its statistic is the distance to the pretrained model's prediction, not to the noise."""
        return False

    @property
    def compared_with(self) -> Path | Literal["warm", "base", "init"] | None:
        """Whose loss its budget is relative to, where the kind has a reference."""
        return None

    def population(self) -> str:
        """The samples that it speaks of, in words."""
        parts = [f"class {' or '.join(self.classes)}"] if self.classes else []
        parts += [f"{name} = {value:g}" for name, value in self.where.items()]
        return " and ".join(parts)

    def select(self, name: str, population: Population) -> np.ndarray:
        """The rows of its samples [n]. Raises InputError: unknown class or attribute, nothing selected."""
        rows = self.matching(name, population)
        if not len(rows):
            raise InputError(
                f"constraints.{name}: no samples of {self.population()} in {population.source}; "
                "a constraint needs at least one"
            )
        return rows

    def matching(self, name: str, population: Population) -> np.ndarray:
        """The rows of its samples [n], perhaps none. Raises InputError: unknown class or attribute."""
        chosen = np.ones(len(population.classes), dtype=bool)
        if self.classes:
            numbers = [_lookup(f"constraints.{name}.class", c, population.class_names) for c in self.classes]
            chosen &= np.isin(population.classes, numbers)
        for attribute, value in self.where.items():
            known = list(population.attributes)
            number = _lookup(f"constraints.{name}.where", attribute, known)
            chosen &= population.attributes[known[number]] == value
        return population.first + np.flatnonzero(chosen)


def _lookup(where: str, name: str, known: list[str]) -> int:
    if name in known:
        return known.index(name)
    near = get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known[:20]) or 'none'}"
    raise InputError(f"{where}: {name!r} is not in the data; {remedy}")
