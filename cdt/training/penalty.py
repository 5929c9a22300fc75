"""Penalties: multipliers that act as weights in the training loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cdt.constraints import Penalty


def penalised(primal: Tensor, penalties: Sequence[Penalty], multipliers: Tensor, x0: Tensor, logsnr: Tensor) -> Tensor:
    """``primal + sum_i lambda_i w_i(l) r_i(x0_theta, l)``: per sample [B]. docs/theory.md, section 12.

    Args:
        primal: the loss of each sample [B].
        multipliers: lambda [P], one per penalty.
        x0: x0_theta [B, C, H, W]; logsnr: [B].
    """
    for penalty, multiplier in zip(penalties, multipliers, strict=True):
        primal = primal + multiplier * penalty.weight(logsnr) * penalty.surrogate(x0, logsnr)
    return primal
