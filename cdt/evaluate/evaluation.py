"""One evaluation of a run: all measurements on one set of generated samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cdt.errors import InputError
from cdt.evaluate import histogram
from cdt.evaluate.frechet import frechet_distance
from cdt.evaluate.memorisation import near_copies
from cdt.evaluate.results import ConstraintState, Divergence, Evaluation
from cdt.judges import Classifier


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
