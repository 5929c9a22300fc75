"""One evaluation of a run: all measurements on one set of generated samples, stored as ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from torch import Tensor

from cdt.errors import InputError
from cdt.evaluate import histogram
from cdt.evaluate.divergence import Divergence
from cdt.evaluate.frechet import frechet_distance
from cdt.evaluate.memorisation import NearCopies, near_copies
from cdt.judges import Classifier
from cdt.records import parsed


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


def evaluate_samples(
    samples: Tensor,
    judge: Classifier,
    *,
    class_names: Sequence[str],
    class_counts: Sequence[int],
    reference: Tensor,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None = None,
    constraints: Sequence[ConstraintState] = (),
    divergence: Divergence | None = None,
    left_out: Sequence[str] = (),
    batch_size: int = 512,
) -> Evaluation:
    """Measures generated images [N, C, H, W]; all images are in [-1, 1], pairs are images and labels [N].

    ``reference`` are the real images of the Fréchet distance, best with as many of each class. ``training`` are the
    images that could be copied (near-copies are searched in the classes that occur in it), ``held_out`` real images
    that were not used in training. Raises InputError if there are no samples or the judge knows other classes.
    """
    if not len(samples):
        raise InputError("there are no samples to evaluate")
    if tuple(class_names) != judge.labels or len(class_counts) != len(judge.labels):
        raise InputError(
            f"the judge distinguishes {', '.join(judge.labels)}; "
            f"there are {len(class_counts)} class counts of {', '.join(class_names)}"
        )
    total = len(samples)
    probabilities = judge.probabilities(samples, batch_size)
    counts = histogram.class_counts(probabilities.numpy())
    low, high = histogram.wilson_interval(counts, total)
    uniform = np.full(len(counts), 1 / len(counts))
    return Evaluation(
        samples=total,
        class_names=tuple(class_names),
        class_counts=tuple(map(int, class_counts)),
        shares=tuple((counts / total).tolist()),
        intervals=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        tv_uniform=histogram.total_variation(counts / total, uniform),
        tv_floor=histogram.expected_total_variation(uniform, total),
        confident=histogram.confident_share(probabilities.numpy()),
        frechet=frechet_distance(judge.network.features, reference, samples, batch_size) if total > 1 else None,
        judge_accuracy=judge.accuracy,
        judge_held_out=sum(judge.held_out_count),
        near_copies=near_copies((samples, probabilities.argmax(dim=1)), training, held_out),
        constraints=tuple(constraints),
        divergence=divergence,
        left_out=tuple(left_out),
    )
