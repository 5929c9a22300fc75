"""How the multiplier of a constraint acts on training. ``cdt.dual.ACTUATORS`` has what the dual side knows of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    Surrogate = Callable[[Tensor, Tensor], Tensor]
    """(x0_theta [B, C, H, W], log-SNR [B]) to a differentiable violation [B]."""


@dataclass(frozen=True)
class Draw:
    """The constraint's samples are drawn more often."""

    name: ClassVar[str] = "draw"


@dataclass(frozen=True)
class Penalty:
    """The training loss has the term ``lambda * weight(l) * surrogate(x0_theta(x_t), l)`` besides, at every sample.

    ``x0_theta`` is a mean, so the surrogate is not the statistic: the surrogate only says in which direction to go, the
    statistic says how far, and moves the multiplier.
    """

    surrogate: Surrogate
    weight: Callable[[Tensor], Tensor]
    """Log-SNR [B] to w_pen [B]."""

    name: ClassVar[str] = "penalty"
