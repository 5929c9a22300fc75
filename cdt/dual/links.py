"""Links: how the sums of a statistic become the loss that is compared with a threshold.

The dual step knows links, not statistics. A new link is one function and its line in ``LINKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cdt.dual.sums import Sums


@dataclass(frozen=True)
class Link:
    """A loss rises with the violation: a requirement is met where ``loss <= threshold``."""

    losses: Callable[[Sums, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """(sums, baseline [n]) to losses and their standard errors: [n] each; nan where nothing was counted."""
    tolerance: float
    """By how much a loss may miss an equality, in ``unit``."""
    unit: str
    """Of losses and thresholds, for messages."""
    share: Callable[[np.ndarray], np.ndarray] | None = None
    """Losses [n] back to shares of samples [n], where the statistic is one."""


def identity(sums: Sums, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``baseline_i + mean_i``: a statistic that is measured as a difference to the warm model's."""
    return baseline + sums.mean(), sums.standard_error()


def negative_log(sums: Sums, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``-log f_i`` of a share f_i: KL(q_i || p) for classes with disjoint supports. Of none among n, f_i is 1 / 2n.

    The standard error is that of the share over the share (the delta method). ``baseline`` is not used.
    """
    share = sums.share()
    return -np.log(share), sums.share_error() / share


def share_of(losses: np.ndarray) -> np.ndarray:
    """The inverse of ``negative_log``."""
    return np.exp(-losses)


LINKS: dict[str, Link] = {
    "identity": Link(identity, tolerance=0.1, unit="nats"),
    # 0.1 nats: a share within a tenth of what is asked.
    "negative_log": Link(negative_log, tolerance=0.1, unit="nats", share=share_of),
}
