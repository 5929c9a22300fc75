"""Near-copies: generated images closer to a training image than all but the closest 1 % of unseen real images.

Images are compared within a class, in pixels: distances are root mean square differences per pixel, with images in
[-1, 1]. A generator that has learnt the class produces images as far from the training images as new real images are;
one that repeats its training images produces closer ones. Blurred images are nearer to everything in this distance, so
a generator that smooths can be suspected wrongly, but a copy is not missed.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import betabinom
from torch import Tensor

from cdt.evaluate.results import NearCopies

RATE = 0.01
CHUNK_ELEMENTS = 2**24  # of a distance matrix: 64 MiB


def nearest_distances(queries: Tensor, references: Tensor, nth: int = 1) -> Tensor:
    """Distance of each query [N, ...] to the nth nearest of the references [M, ...], M >= nth: [N]."""
    flat = references.flatten(1)
    rows = max(1, CHUNK_ELEMENTS // len(flat))
    nearest = [torch.cdist(chunk, flat).kthvalue(nth, dim=1).values for chunk in queries.flatten(1).split(rows)]
    return torch.cat(nearest) / math.sqrt(flat.shape[1])


def near_copy_rank(real: int) -> int:
    """Which of n distances of unseen real images, from the smallest, is the threshold: ``max(1, floor(0.01 (n + 1)))``.

    A further real image is exchangeable with them, so it falls below the k-th smallest with probability ``k / (n + 1)``
    for any distribution without ties (conformal prediction; Vovk, Gammerman, Shafer 2005). From 99 images on
    this is 1 % or slightly less. With fewer images the smallest is taken; the rate is then above 1 % but known. Counts
    are therefore compared with the count expected by chance, never with zero.
    """
    return max(1, math.floor(RATE * (real + 1)))


def probability_of_at_least(count: int, draws: int, rank: int, real: int) -> float:
    """``P(X >= count)`` where X of m further draws fall below the k-th smallest of n draws of the same distribution.

    Beta-binomial: the k-th smallest of n uniforms is Beta(k, n - k + 1). It takes into account that the threshold
    itself is an estimate, which a binomial test at rate ``k / (n + 1)`` would not.
    """
    return float(betabinom.sf(count - 1, draws, rank, real - rank + 1))


def near_copies(
    generated: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor] | None
) -> tuple[NearCopies, ...]:
    """Counts near-copies in each class of the training images; pairs are images [N, C, H, W] and labels [N].

    ``held_out`` are real images that were not used in training. Without them (None, or none of a class) each training
    image is compared with the others of its class: this is less exact, because these distances are not independent
    (``chance`` is then too small too often). A class with a single training image is then left out.
    """
    found = []
    for label in training[1].unique().tolist():
        copied = training[0][training[1] == label]
        unseen = held_out[0][held_out[1] == label] if held_out is not None else copied[:0]
        if len(unseen):
            real = nearest_distances(unseen, copied)
        elif len(copied) > 1:
            real = nearest_distances(copied, copied, nth=2)  # the nearest one is the image itself
        else:
            continue
        rank = near_copy_rank(len(real))
        threshold = float(real.kthvalue(rank).values)
        made = generated[0][generated[1] == label]
        distances = nearest_distances(made, copied) if len(made) else made.new_empty(0)
        count = int((distances < threshold).sum())
        found.append(
            NearCopies(
                label=label,
                training=len(copied),
                generated=len(made),
                near_copies=count,
                expected=len(made) * rank / (len(real) + 1),
                chance=probability_of_at_least(count, len(made), rank, len(real)),
                threshold=threshold,
                median_generated=float(distances.median()) if len(made) else None,
                median_real=float(real.median()),
            )
        )
    return tuple(found)
