"""``window: auto``: the log-SNR up to which a constraint's loss is measured, so that it speaks of class mass.

Integrated from the noise end up to l, the loss gap is ``KL(q_i * N_l || p * N_l)``, and for a mixture that is
``log(1 / f_i) - E[-log p(i | x)]`` with x from q_i noised to l: full credit for a share f_i only where the classes can
be distinguished. Above that l the loss is detail, which a model can fit without generating the class more often.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

SEPARATED = 0.05
"""nats of posterior cross-entropy that may be missing from log(1 / f_i)"""
_DRAWS = 256


def posterior_cross_entropy(
    inside: np.ndarray, outside: np.ndarray, share: float, logsnr: np.ndarray, eps: np.ndarray
) -> np.ndarray:
    """``E_{x ~ q_i * N_l}[-log p(i | x)]`` in nats, for each l of ``logsnr`` [L]: [L].

    The posterior is exact for the mixture of Gaussians that a data set becomes when it is noised: exemplars ``inside``
    [n, D] of the constraint with total share f_i, exemplars ``outside`` [k, D] with the rest. ``eps`` [r, D]: draw j is
    exemplar ``j mod n`` noised by ``eps[j]``, the same at each l.
    """
    exemplars = np.concatenate([inside, outside])
    own = inside[np.arange(len(eps)) % len(inside)]
    log_weight = np.log(
        np.concatenate([np.full(len(inside), share / len(inside)), np.full(len(outside), (1 - share) / len(outside))])
    )
    squared = (own**2).sum(1)[:, None] - 2 * own @ exemplars.T + (exemplars**2).sum(1)
    projected = (eps * own).sum(1)[:, None] - eps @ exemplars.T
    entropies = []
    for level in logsnr:
        snr = np.exp(level)
        # -|a x0 + s eps - a x_j|^2 / (2 s^2), without the term |eps|^2 that all exemplars share
        log_density = log_weight - snr * squared / 2 - np.sqrt(snr) * projected
        entropies.append(np.mean(_logsumexp(log_density) - _logsumexp(log_density[:, : len(inside)])))
    return np.array(entropies)


def _logsumexp(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=1)
    return top + np.log(np.exp(values - top[:, None]).sum(axis=1))


def auto_window(
    inside: np.ndarray, outside: np.ndarray, share: float, logsnr_min: float, logsnr_max: float, seed: int
) -> float:
    """The smallest l, to a quarter, at which the posterior cross-entropy is at most ``SEPARATED`` nats.

    Shares above 0.6 need less than that, a tenth of log(1 / f_i), or their window would hold no credit at all.

    Images ``inside`` [n, C, H, W] and ``outside`` [k, C, H, W] in [-1, 1]; a thousand of each are plenty. Returns
    ``logsnr_max`` when the classes separate nowhere below it, or when there is nothing outside.
    """
    if not len(outside):
        return logsnr_max
    inside, outside = (images.reshape(len(images), -1).astype(np.float64) for images in (inside, outside))
    eps = np.random.default_rng(seed).standard_normal((_DRAWS, inside.shape[1]))
    levels = np.arange(np.ceil(4 * logsnr_min), np.floor(4 * logsnr_max) + 1) / 4
    allowed = min(SEPARATED, -math.log(share) / 10)

    def separated(level: float) -> bool:
        return bool(posterior_cross_entropy(inside, outside, share, np.array([level]), eps)[0] <= allowed)

    # Noise loses information (data processing): the cross-entropy falls with l, and bisection finds the place.
    place = bisect_left(levels.tolist(), True, key=separated)
    return float(levels[place]) if place < len(levels) else logsnr_max
