"""Statistics of the constraints from training batches: additive sums by cell."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cdt.constraints import Requirements
from cdt.data.stream import Batch
from cdt.diffusion.loss import Diffusion, Losses, nats
from cdt.dual import Sums
from cdt.engine.ranks import Ranks


def once_per_cell(columns: Tensor, cells: Tensor) -> Tensor:
    """The totals of each cell at its first sample, 0 at the others: [B, n], from columns [B, n] and cells [B].

    Added to by cell, they have the same bits each time: a GPU adds in any order, and all but one summand are 0.
    """
    same = cells[:, None] == cells
    first = ~same.tril(-1).any(dim=1)
    return torch.where(first[:, None], same.to(columns.dtype) @ columns, 0.0)


class PeriodSums:
    """(sum, sum of squares, count) of the finite losses in nats, by cell; float64 on the device, without a wait.

    The last row is only the base draws, over the full range of log-SNR: the estimate of loss(q).
    """

    def __init__(self, cell_windows: np.ndarray, diffusion: Diffusion, device: torch.device) -> None:
        self._windows = torch.as_tensor(cell_windows, dtype=torch.float32, device=device)
        self._range = diffusion.process.logsnr_min, diffusion.process.logsnr_max
        self._sums = torch.zeros(len(cell_windows) + 1, 3, dtype=torch.float64, device=device)

    def add(self, batch: Batch, losses: Losses) -> None:
        """Draws are uniform over the full range, so a window's loss is the full loss at log-SNRs inside it."""
        full = nats(losses.squared_error.detach(), batch.images[0].numel(), *self._range)
        known = full.isfinite()
        full = torch.where(known, full, 0.0)
        windowed = full * (losses.logsnr <= self._windows[batch.cells])
        columns = torch.stack([windowed, windowed**2, known.to(full.dtype)], dim=1)
        self._sums.index_add_(0, batch.cells, once_per_cell(columns, batch.cells))
        base = full * (batch.streams == 0)
        count = (known & (batch.streams == 0)).sum()
        self._sums[-1] += torch.stack([base.sum(), base.square().sum(), count.to(full.dtype)])

    def everyones(self, ranks: Ranks) -> list[list[list[float]]] | None:
        """The sums since the last ``take``, rank by rank [ranks, K + 1, 3]; None if all are 0. A collective."""
        found = ranks.all_of(self._sums.tolist())
        return found if np.any(found) else None

    def go_on_from(self, everyones: list[list[list[float]]], ranks: Ranks) -> None:
        """Restores the sums. On the same number of ranks each gets its own, to keep the order of additions."""
        mine = everyones if len(everyones) == ranks.world else [np.sum(everyones, axis=0)]
        if ranks.rank < len(mine):
            self._sums.copy_(torch.as_tensor(np.asarray(mine[ranks.rank])))

    def take(self) -> np.ndarray:
        """The sums [K + 1, 3] since the last call; then resets."""
        sums = self._sums.cpu().numpy().copy()
        self._sums.zero_()
        return sums


def constraint_sums(requirements: Requirements, cell_sums: np.ndarray) -> Sums:
    """Cells [K, 3] to constraints: the mean of a constraint is that of its cells, weighted by their shares in the data.

    (The stream draws some cells more often than the data has them; given its cell, a draw is uniform in it.)
    """
    total, squares, count = cell_sums.T
    drawn = np.where(count > 0, count, np.nan)
    counts = np.bincount(
        requirements.member_constraints, weights=count[requirements.member_cells], minlength=len(requirements.names)
    )
    mean, mean_square = (np.nan_to_num(requirements.by_constraint(values / drawn)) for values in (total, squares))
    return Sums(mean * counts, mean_square * counts, counts)
