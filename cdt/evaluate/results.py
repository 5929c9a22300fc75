"""The results of an evaluation as they are stored, so that they can be read without what computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from cdt.errors import InputError
from cdt.records import parsed

Statistic = Literal["distance", "loss"]


@dataclass(frozen=True)
class Divergence:
    """An estimate of KL(q_1 || p) on log-SNR up to ``window``, q_1 what the pretrained model generates."""

    nats: float
    standard_error: float
    """Standard error of the mean over samples."""
    samples: int
    window: float
    statistic: Statistic
    budget: float | None
    """The bound that the model was trained under, if there was one."""


@dataclass(frozen=True)
class NearCopies:
    """The result for one class; distances per pixel (see ``memorisation``), medians None if nothing was generated."""

    label: int
    training: int
    """Number of training images of the class, which could be copied."""
    generated: int
    """Number of generated images of the class."""
    near_copies: int
    """How many of them are closer to a training image than ``threshold``."""
    expected: float
    """How many of as many unseen real images would be, on average."""
    chance: float
    """Probability that as many unseen real images have at least ``near_copies``: small means memorisation."""
    threshold: float
    median_generated: float | None
    median_real: float


@dataclass(frozen=True)
class ConstraintState:
    """A constraint after the last dual step; None if nothing was measured."""

    name: str
    classes: tuple[int, ...]
    """The classes that it is about; empty if it is not about whole classes."""
    min_frequency: float | None
    """The floor on their share of the samples, if that is how the constraint is stated."""
    lambda_: Annotated[float, Field(alias="lambda")]
    loss: float | None
    threshold: float | None
    slack: float | None
    """``threshold - loss``: positive when satisfied."""
    satisfied: bool | None
    unit: str = "nats"
    """Of loss, threshold and slack."""


@dataclass(frozen=True)
class Evaluation:
    """Measurements on ``samples`` generated images; per-class entries are in the order of ``class_names`` [K]."""

    samples: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Images of each class in the training data."""
    shares: tuple[float, ...]
    """Share of the samples that the judge assigns to each class."""
    intervals: tuple[tuple[float, float], ...]
    """Their 95 % intervals (Wilson): sampling error alone, not the judge's mistakes."""
    tv_uniform: float
    """Total variation of the shares from uniform."""
    tv_floor: float
    """The average total variation of as many samples of an exactly uniform generator."""
    confident: float
    """Share of the samples that the judge is sure of (probability above 0.9)."""
    frechet: float | None
    """Fréchet distance to the reference images in the judge's features; None for fewer than two samples."""
    judge_accuracy: float
    judge_held_out: int
    """Number of held-out images behind ``judge_accuracy``."""
    near_copies: tuple[NearCopies, ...]
    constraints: tuple[ConstraintState, ...]
    divergence: Divergence | None = None
    """From the pretrained model that training started from; None without one."""
    left_out: tuple[str, ...] = ()
    """Classes that the judge does not know, as the reference has too few images of them."""

    @property
    def data_shares(self) -> tuple[float, ...]:
        total = sum(self.class_counts)
        return tuple(count / total for count in self.class_counts)

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self, indent=2, by_alias=True).decode()

    def to_tree(self) -> dict[str, Any]:
        """The object that ``to_json`` writes."""
        return _ADAPTER.dump_python(self, mode="json", by_alias=True)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Reads what ``to_json`` wrote. InputError names the first entry that does not fit, or contradicts others."""
        found = parsed(text, _ADAPTER, "not an evaluation")
        if problem := next(_contradictions(found), None):
            raise InputError(f"not an evaluation: {problem}")
        return found


_ADAPTER = TypeAdapter(Evaluation)


def _contradictions(found: Evaluation) -> Iterator[str]:
    K = len(found.class_names)
    for name in ("class_counts", "shares", "intervals"):
        if len(getattr(found, name)) != K:
            yield f"{name} are {len(getattr(found, name))}, class_names {K}"
    if not sum(found.class_counts):
        yield "class_counts are all 0"
    if min(found.samples, *found.class_counts) < 0:
        yield "a count is negative"
    if any(not 0 <= label < K for each in found.constraints for label in each.classes):
        yield "a constraint is about a class that is not there"
    if any(not 0 <= each.label < K for each in found.near_copies):
        yield "near_copies are of a class that is not there"
