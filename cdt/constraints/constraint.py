"""What a requirement is: which samples it speaks of, on which window of log-SNR, and its budget in the user's units."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_serializer, field_validator, model_validator

from cdt.constraints.actuator import Draw, Penalty
from cdt.constraints.samples import Labelled, Population, Samples
from cdt.constraints.statistic import DenoisingLoss, GeneratedShare, Statistic
from cdt.errors import InputError
from cdt.schema import Config, LogSnr

EXACT = 2**53
"""The largest whole number up to which floats have all of them."""
AttributeValue = Annotated[float, Field(ge=-EXACT, le=EXACT)]


@dataclass(frozen=True)
class Calibration:
    """Measurements of the warm model for one constraint, from which its threshold is set."""

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
    """``loss_i <= c_i``: composed of samples, a statistic, a link, a budget and an actuator.

    By default it speaks of the denoising loss on samples of some classes or attributes, and its multiplier draws them.
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
    link: ClassVar[str] = "identity"
    """How sums of the statistic become a loss, a key of ``cdt.dual.LINKS``."""

    classes: tuple[str, ...] = Field(default=(), validation_alias="class", serialization_alias="class")
    """A class by name, or a list of classes that are one group."""
    where: dict[str, AttributeValue] = Field(default_factory=dict)
    """Attributes and the values that they must have."""
    window: Literal["auto"] | LogSnr | None = None
    """Upper end of the log-SNR window of the loss; ``null``: the full range; ``auto``: where classes separate."""

    @field_validator("classes", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> tuple[str, ...]:
        several = value if isinstance(value, list | tuple) else [value]
        if None in several:
            raise ValueError("null is no name; write 'null' in quotes for a class that is called null")
        if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in several):
            raise ValueError("a class name or a list of class names is needed")
        return tuple(str(name) for name in several)

    @field_validator("where", mode="before")
    @classmethod
    def _exact(cls, where: object) -> object:
        """A whole number that floats round would select another value."""
        for name, value in where.items() if isinstance(where, dict) else ():
            if _is_rounded(_in_quotes(value)):
                raise ValueError(f"{name}: {value} cannot be kept exactly; whole numbers up to {EXACT} can")
        return where

    @field_serializer("where")
    def _exactly_again(self, where: dict[str, float]) -> dict[str, float]:
        """What was written whole stays so where a float would be refused when it is read again."""
        return {name: int(value) if _is_rounded(value) else value for name, value in where.items()}

    @model_validator(mode="after")
    def _selects_something(self) -> Constraint:
        if not self.classes and not self.where:
            raise ValueError("says nothing about which samples: give `class: NAME`, or `where: {ATTRIBUTE: VALUE}`")
        return self

    @property
    def samples(self) -> Samples:
        """Which samples it speaks of."""
        return Labelled(self.classes, self.where)

    @property
    def statistic(self) -> Statistic:
        """What is measured."""
        return DenoisingLoss()

    @property
    def warm_share(self) -> GeneratedShare | None:
        """What measures its share of the warm model's samples at calibration; None: the share in the data is taken."""
        return None

    @property
    def actuator(self) -> Draw | Penalty:
        """How its multiplier acts."""
        return Draw()

    @abstractmethod
    def threshold(self, calibration: Calibration) -> float:
        """c_i, in the units of the link: nats."""

    @abstractmethod
    def describe(self) -> str:
        """The requirement in words, for tables and model cards."""

    @property
    def budget_path(self) -> str:
        """The setting that states the budget: what may change while a run is under way."""
        return self.budget

    @property
    def budget_in_nats(self) -> float | None:
        """b_i of ``KL(q_i || p) <= b_i``, if the budget is a divergence: then ``exp(-b_i)`` is a share. It is
        ``log(1 / F)`` for a share F; None for other budgets."""
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
    def compared_with(self) -> Path | Literal["warm", "base", "init"] | None:
        """Whose loss its budget is relative to, where the kind has a reference."""
        return None

    def select(self, name: str, population: Population) -> np.ndarray:
        """The rows of its samples [n]. Raises InputError: unknown class or attribute, nothing selected."""
        rows = self.samples.rows(name, population)
        if not len(rows):
            raise InputError(
                f"constraints.{name}: no samples of {self.samples.describe()} in {population.source}; "
                "a constraint needs at least one"
            )
        return rows


def _in_quotes(value: object) -> object:
    """The number that a text means, whole if it is written so; other values stay."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _is_rounded(value: object) -> bool:
    """Whether a number may not be the one that was written: 2**53 as a float may have been 2**53 + 1."""
    if isinstance(value, float):
        return EXACT <= abs(value) < math.inf
    return isinstance(value, int) and abs(value) > EXACT
