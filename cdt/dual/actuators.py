"""Actuators: how a multiplier acts on training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_WEIGHT = 0.1
"""The part of their weight that an equality leaves its samples at least."""


@dataclass(frozen=True)
class Actuator:
    draws: bool
    """Whether the multiplier draws its constraint's samples: then it is a weight of the mixture, and Lambda has it."""


ACTUATORS: dict[str, Actuator] = {
    # Samples of the constraint's stream are drawn more often.
    "draw": Actuator(draws=True),
    # A surrogate is added to the loss, with the multiplier as its weight.
    "penalty": Actuator(draws=False),
}


def lowest_multipliers(shares: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """The least lambda_i [m] for shares pi_i [m]: 0, or where ``equal`` what leaves the samples their least weight.

    ``equal``: bool [m], the equalities whose multipliers draw.
    """
    return np.where(equal, -(1 - LEAST_WEIGHT) * shares, 0.0)
